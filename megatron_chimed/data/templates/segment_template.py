"""Chat templates of segments: three published ones, and any other from a YAML file.

A template yields segments, which a tokenizer encodes separately: the boundaries of segments are
part of the format, because a sentencepiece model puts its dummy prefix at the start of each. Texts
are inserted literally, so braces in a question have no meaning, and a text that spells one of the
template's own tags cannot open a turn: `without_tags` removes it.
"""

import dataclasses
import functools
import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

from megatron_chimed.data.formats.example import (
    Conversation,
    Turn,
    has_reasoning,
    has_tools,
)
from megatron_chimed.data.templates.tags import TagRemover
from megatron_chimed.data.templates.template import Segment, Targets, Template
from megatron_chimed.errors import ConfigError
from megatron_chimed.tokenizer import Tokenizer
from megatron_chimed.tokenizer.byte_bpe import ByteBpeTokenizer

BOS_CHOICES = ("none", "first", "every")

QUESTION = "{question}"
SYSTEM = "{system}"
REASONING = "{reasoning}"


@dataclass(frozen=True, kw_only=True)
class SegmentTemplate(Template):
    """A chat template. Every answer is its own segment, followed by the end of sequence."""

    prompt: str
    """A turn up to its answer, with exactly one `{question}`."""

    separator: str = ""
    """A segment before each turn but the first, and after the system prompt."""

    system: str = "{system}\n"
    """A segment before the first turn of conversations with a system prompt."""

    bos: Literal["none", "first", "every"] = "none"
    """Which turns of training data start with the begin-of-sequence token."""

    add_bos: bool = True
    """Whether a prompt for generation starts with that token even if training data do not."""

    think: str = ""
    """How reasoning before an answer is written, with exactly one `{reasoning}`; the answer follows
    in the same segment. Empty: the template has no part for it."""

    tags: tuple[str, ...] = ()
    """Texts reserved for the template: `without_tags` removes them from all other texts."""

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            ConfigError: A field is empty or unknown, or does not have exactly one placeholder.
        """
        for field, text, placeholder in (
            ("prompt", self.prompt, QUESTION),
            ("system", self.system, SYSTEM),
            ("think", self.think or REASONING, REASONING),
        ):
            if text.count(placeholder) != 1:
                raise ConfigError(
                    f"template {self.name!r}: {field} is {text!r}, which holds {placeholder} "
                    f"{text.count(placeholder)} times. Write it exactly once."
                )
        if self.bos not in BOS_CHOICES:
            raise ConfigError(
                f"template {self.name!r}: bos is {self.bos!r}, none of {', '.join(BOS_CHOICES)}."
            )
        if not self.name or not all(self.tags):
            raise ConfigError(f"template {self.name!r}: a name and tags must not be empty.")

    @functools.cached_property
    def identity(self) -> str:
        """Hex SHA-256 of all fields but the name: equal if all segments are equal."""
        fields = dataclasses.asdict(self)
        del fields["name"]
        if not self.think:  # added later: templates without it keep their identity
            del fields["think"]
        text = json.dumps(fields, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8")).hexdigest()

    @property
    def is_joined(self) -> bool:
        """Never: each segment has a dummy prefix of its own."""
        return False

    @property
    def needs_last_turn(self) -> bool:
        """Never."""
        return False

    def fields(self) -> dict[str, Any]:
        """The keys of a YAML file."""
        return {**dataclasses.asdict(self), "tags": list(self.tags)}

    def render(
        self, conversation: Conversation, *, targets: Targets = "answers"
    ) -> list[list[Segment]]:
        """As of `Template`; the last two segments of a turn are its answer and the end token."""
        last = len(conversation.turns) - 1
        turns = []
        for number, turn in enumerate(conversation.turns):
            segments = self._opening(number, conversation.system)
            segments.append(Segment(_fill(self.prompt, QUESTION, turn.question)))
            if targets == "all" and turn.is_learned:
                segments = [dataclasses.replace(item, is_target=True) for item in segments]
            is_target = turn.is_learned and (targets != "last" or number == last)
            segments.append(Segment(self._answer(turn), "", is_target, "answer"))
            segments.append(Segment("", "eos", is_target, "end"))
            turns.append(segments)
        return turns

    def render_prompt(
        self, conversation: Conversation, *, for_generation: bool = True
    ) -> list[Segment]:
        """As of `Template`; prompts start with the begin of sequence if `add_bos` says so."""
        assert not conversation.turns[-1].answer, "the last answer of a prompt must be empty"
        segments = [segment for turn in self.render(conversation) for segment in turn][:-2]
        segments = [dataclasses.replace(segment, is_target=False) for segment in segments]
        if for_generation and self.add_bos and self.bos == "none":
            segments.insert(0, Segment(control="bos"))
        return segments

    def misfit(self, conversation: Conversation) -> str | None:
        """Tools never fit, reasoning only with `think`."""
        if has_tools(conversation):
            return f"the assistant calls tools, for which template {self.name!r} has no turns"
        if not self.think and has_reasoning(conversation):
            return (
                f"there is reasoning before an answer, for which template {self.name!r} has no "
                "part: use a template with `think`, or leave it out with --drop-reasoning"
            )
        return None

    def tags_for(self, tokenizer: Tokenizer) -> TagRemover:
        """Its own tags, with any tokenizer."""
        return self._tag_remover

    def without_tags(self, conversation: Conversation) -> tuple[Conversation, int]:
        """The conversation without the template's tags in its texts, and how many were removed."""
        return self._tag_remover.clean(conversation)

    def remove_tags(self, text: str) -> tuple[str, int]:
        """A text without the tags, repeatedly removed, and how many were removed."""
        return self._tag_remover.remove(text)

    @functools.cached_property
    def _tag_remover(self) -> TagRemover:
        return TagRemover(self.tags)

    def stop_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """The end of sequence."""
        return (tokenizer.eos_id,)

    def unfit_reason(self, tokenizer: Tokenizer) -> str | None:
        """Byte-level tokenizers merge across the boundaries of segments."""
        if not isinstance(tokenizer, ByteBpeTokenizer):
            return None
        return (
            "it encodes each part of a turn alone, while the merges of this byte-level tokenizer "
            "cross such parts"
        )

    def _answer(self, turn: Turn) -> str:
        """An answer, after its reasoning."""
        assert not turn.steps, "conversations with tools are refused before"
        if not turn.reasoning:
            return turn.answer
        assert self.think, "reasoning is refused before if the template has no part for it"
        return _fill(self.think, REASONING, turn.reasoning) + turn.answer

    def _opening(self, number: int, system: str) -> list[Segment]:
        """The segments before a turn's prompt."""
        if number > 0:
            bos = [Segment(control="bos")] if self.bos == "every" else []
            return [*self._separator(), *bos]
        segments = [] if self.bos == "none" else [Segment(control="bos")]
        if system:
            segments += [Segment(_fill(self.system, SYSTEM, system)), *self._separator()]
        return segments

    def _separator(self) -> list[Segment]:
        return [Segment(self.separator)] if self.separator else []


def _fill(text: str, placeholder: str, value: str) -> str:
    before, _, after = text.partition(placeholder)
    return before + value + after
