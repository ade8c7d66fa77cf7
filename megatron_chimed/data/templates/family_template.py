"""Templates of model families, in which special tokens mark the turns.

Everything between two of them is encoded as one text: the merges of a byte-level tokenizer cross
every other boundary, so an answer that starts with a line break shares a token with the line break
before it. `pieces` says what is learned then. The tokens come from the template alone; what a text
of the user spells is text.
"""

import abc
import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from megatron_chimed.data.formats.example import Conversation
from megatron_chimed.data.templates.tags import TagRemover
from megatron_chimed.data.templates.template import Part, Segment, Targets, Template
from megatron_chimed.tokenizer import Tokenizer

REVISION = 1
"""Part of every identity: a change of what is rendered needs another one."""


@dataclass(frozen=True, kw_only=True)
class FamilyTemplate(Template):
    """A chat template in which special tokens mark the turns."""

    FORMAT: ClassVar[str]
    """Its name where it is stored."""

    REQUIRED: ClassVar[tuple[str, ...]]
    """Tokens without which it does not fit a tokenizer."""

    OPTIONAL: ClassVar[tuple[str, ...]] = ()
    """Texts of the template that are tokens in some vocabularies."""

    STOPS: ClassVar[tuple[str, ...]]
    """Tokens that end an answer: the one that is learned, then the others, where they exist."""

    @functools.cached_property
    def identity(self) -> str:
        """As of `Template`."""
        fields = {**self.fields(), "revision": REVISION}
        del fields["name"]
        text = json.dumps(fields, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8")).hexdigest()

    @property
    def is_joined(self) -> bool:
        """Always."""
        return True

    def fields(self) -> dict[str, Any]:
        """The format and its options."""
        return {**dataclasses.asdict(self), "format": self.FORMAT}

    def render(
        self, conversation: Conversation, *, targets: Targets = "answers"
    ) -> list[list[Segment]]:
        """As of `Template`."""
        last = len(conversation.turns) - 1
        turns = []
        for number, segments in enumerate(self._turns(conversation, is_prompt=False)):
            is_whole = targets == "all" and conversation.turns[number].is_learned
            is_left_out = targets == "last" and number != last
            if is_whole or is_left_out:
                turns.append([dataclasses.replace(s, is_target=is_whole) for s in segments])
            else:
                turns.append(segments)
        return turns

    def render_prompt(
        self, conversation: Conversation, *, for_generation: bool = True
    ) -> list[Segment]:
        """As of `Template`; prompts are the same in training and generation."""
        assert not conversation.turns[-1].answer, "the last answer of a prompt must be empty"
        turns = self._turns(conversation, is_prompt=True)
        return [dataclasses.replace(s, is_target=False) for turn in turns for s in turn]

    @abc.abstractmethod
    def _turns(self, conversation: Conversation, *, is_prompt: bool) -> Iterator[list[Segment]]:
        """The segments of each turn; those of the assistant are targets where learned.

        Args:
            conversation: The conversation.
            is_prompt: Whether to end where the last answer starts.
        """

    def tags_for(self, tokenizer: Tokenizer) -> TagRemover:
        """Only what the tokenizer reads as a token in any text; byte-level ones read none."""
        recognised = set(tokenizer.recognised)
        return TagRemover(tuple(token for token in self.tokens if token in recognised))

    def stop_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """The ids of `STOPS`."""
        found = (tokenizer.find(token) for token in self.STOPS)
        return tuple(dict.fromkeys(index for index in found if index is not None))

    def unfit_reason(self, tokenizer: Tokenizer) -> str | None:
        """A token that marks turns is missing."""
        missing = [token for token in self.REQUIRED if tokenizer.find(token) is None]
        if not missing:
            return None
        return f"it marks turns with {', '.join(missing)}, which this tokenizer does not have"

    @property
    def tokens(self) -> tuple[str, ...]:
        """Texts of the template that are tokens where the vocabulary has them."""
        return (*self.REQUIRED, *self.OPTIONAL)

    def _marked(self, text: str, is_target: bool = False, part: Part = "prompt") -> list[Segment]:
        """A text of the template itself: what spells one of its tokens is that token."""
        pieces = self._token_pattern.split(text)  # text and token in turn
        return [
            Segment(piece, "token" if place % 2 else "", is_target, part)
            for place, piece in enumerate(pieces)
            if piece
        ]

    @functools.cached_property
    def _token_pattern(self) -> re.Pattern[str]:
        return re.compile(f"({'|'.join(map(re.escape, self.tokens))})")


def parse_tools(tools: str) -> list[Any]:
    """The tools of a conversation.

    Raises:
        ValueError: They are not JSON.
    """
    value = json.loads(tools) if tools else []
    return value if isinstance(value, list) else [value]


def json_text(value: Any, *, indent: int | None = None) -> str:
    """JSON as `transformers` writes it in chat templates."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def tools_misfit(conversation: Conversation) -> str | None:
    """Why the tools of a conversation cannot be rendered, or None."""
    try:
        parse_tools(conversation.tools)
    except ValueError as error:
        return f"its tools are not JSON: {error}"
    return None
