"""What every chat template can do: segments, targets, stop ids, and what it refuses.

`SegmentTemplate` is for the formats of sentencepiece models, published or from a YAML file,
`FamilyTemplate` for those of today's base models, in which special tokens mark the turns.
"""

import abc
from dataclasses import dataclass
from typing import Any, Literal

from megatron_chimed.data.formats.example import Conversation
from megatron_chimed.data.templates.tags import TagRemover
from megatron_chimed.tokenizer import Tokenizer

Targets = Literal["answers", "last", "all"]
TARGETS: tuple[Targets, ...] = ("answers", "last", "all")

Part = Literal["prompt", "answer", "end", "closing"]


@dataclass(frozen=True)
class Segment:
    """A unit of a turn: a text or one control token."""

    text: str = ""
    """The text; of a `token` its spelling; else empty."""

    control: Literal["", "bos", "eos", "token"] = ""
    """The tokenizer's begin or end of sequence, or the token that `text` spells; empty: a text."""

    is_target: bool = False
    """Whether the model learns to generate it."""

    part: Part = "prompt"
    """Of its turn: what stands before the last answer, that answer, the token that ends it, or what
    follows the end."""


@dataclass(frozen=True, kw_only=True)
class Template(abc.ABC):
    """A chat template."""

    name: str
    """Its name in messages and files."""

    @property
    @abc.abstractmethod
    def identity(self) -> str:
        """Hex SHA-256 of all but the name: equal if all segments are equal."""

    @property
    @abc.abstractmethod
    def is_joined(self) -> bool:
        """Whether texts between two control tokens are encoded as one; else each one alone."""

    @property
    @abc.abstractmethod
    def needs_last_turn(self) -> bool:
        """Whether a turn is rendered differently when it is the last one."""

    @abc.abstractmethod
    def render(
        self, conversation: Conversation, *, targets: Targets = "answers"
    ) -> list[list[Segment]]:
        """The segments of each turn, their parts in the order of `Part`.

        Args:
            conversation: The conversation; its texts are used unchanged.
            targets: What is learned: all answers with their end tokens, only the last one, or
                everything.
        """

    @abc.abstractmethod
    def render_prompt(
        self, conversation: Conversation, *, for_generation: bool = True
    ) -> list[Segment]:
        """The segments before the last answer, from which a model continues.

        Args:
            conversation: A conversation whose last answer is "".
            for_generation: Whether to add what only prompts start with; if not, the segments are
                those of training data.
        """

    @abc.abstractmethod
    def misfit(self, conversation: Conversation) -> str | None:
        """Why a conversation cannot be rendered, or None."""

    @abc.abstractmethod
    def tags_for(self, tokenizer: Tokenizer) -> TagRemover:
        """Removes from texts what the tokenizer would read as a mark of the template."""

    @abc.abstractmethod
    def stop_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """Ids at which an answer ends; the first one is learned as its end."""

    @abc.abstractmethod
    def unfit_reason(self, tokenizer: Tokenizer) -> str | None:
        """Why the template does not fit a tokenizer, or None."""

    @abc.abstractmethod
    def fields(self) -> dict[str, Any]:
        """Everything that defines it, as JSON values; `stored.read_fields` reads them."""
