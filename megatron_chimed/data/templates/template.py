"""Chat templates: three published ones, and any other.

A template yields segments, which a tokenizer encodes separately: the boundaries of segments are
part of the format, because a sentencepiece model puts its dummy prefix at the start of each. Texts
are inserted literally, so braces in a question have no meaning, and a text that spells one of the
template's own tags cannot open a turn: `without_tags` removes it.
"""

import dataclasses
import functools
import hashlib
import json
import re
from dataclasses import dataclass
from typing import Literal

from megatron_chimed.data.formats.example import Conversation, Turn, map_texts
from megatron_chimed.errors import ConfigError

Targets = Literal["answers", "last", "all"]
TARGETS: tuple[Targets, ...] = ("answers", "last", "all")
BOS_CHOICES = ("none", "first", "every")

QUESTION = "{question}"
SYSTEM = "{system}"
REASONING = "{reasoning}"


@dataclass(frozen=True)
class Segment:
    """A unit that is encoded separately: a text or one control token."""

    text: str = ""
    """The text; empty for a control token."""

    control: Literal["", "bos", "eos"] = ""
    """The tokenizer's begin or end of sequence; empty for a text."""

    is_target: bool = False
    """Whether the model learns to generate it."""


@dataclass(frozen=True, kw_only=True)
class Template:
    """A chat template. Every answer is its own segment, followed by the end of sequence."""

    name: str
    """Its name in messages and files."""

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

    def render(
        self, conversation: Conversation, *, targets: Targets = "answers"
    ) -> list[list[Segment]]:
        """The segments of each turn; the last two of a turn are its answer and the end token.

        Args:
            conversation: The conversation; its texts are used unchanged.
            targets: What is learned: all answers with their end tokens, only the last one, or
                everything.
        """
        last = len(conversation.turns) - 1
        turns = []
        for number, turn in enumerate(conversation.turns):
            segments = self._opening(number, conversation.system)
            segments.append(Segment(_fill(self.prompt, QUESTION, turn.question)))
            if targets == "all" and turn.is_learned:
                segments = [dataclasses.replace(item, is_target=True) for item in segments]
            is_target = turn.is_learned and (targets != "last" or number == last)
            segments.append(Segment(self._answer(turn), is_target=is_target))
            segments.append(Segment(control="eos", is_target=is_target))
            turns.append(segments)
        return turns

    def render_prompt(
        self, conversation: Conversation, *, for_generation: bool = True
    ) -> list[Segment]:
        """The segments before the last answer, from which a model continues.

        Args:
            conversation: A conversation whose last answer is "".
            for_generation: Whether to apply `add_bos`; if not, the segments are those of training
                data.
        """
        assert not conversation.turns[-1].answer, "the last answer of a prompt must be empty"
        segments = [segment for turn in self.render(conversation) for segment in turn][:-2]
        segments = [dataclasses.replace(segment, is_target=False) for segment in segments]
        if for_generation and self.add_bos and self.bos == "none":
            segments.insert(0, Segment(control="bos"))
        return segments

    def without_tags(self, conversation: Conversation) -> tuple[Conversation, int]:
        """The conversation without the template's tags in its texts, and how many were removed."""
        texts = [conversation.system]
        for turn in conversation.turns:
            texts += [turn.question, turn.reasoning, turn.answer]
        everything = "\0".join(texts)
        if not any(tag in everything for tag in self.tags):
            return conversation, 0
        removed = 0

        def clean(text: str) -> str:
            nonlocal removed
            text, found = self.remove_tags(text)
            removed += found
            return text

        return map_texts(conversation, clean), removed

    def remove_tags(self, text: str) -> tuple[str, int]:
        """A text without the tags, repeatedly removed, and how many were removed."""
        removed = 0
        while self.tags:
            text, found = self._tag_pattern.subn("", text)
            if not found:
                break
            removed += found
        return text, removed

    @functools.cached_property
    def _tag_pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self.tags, key=lambda tag: (-len(tag), tag))
        return re.compile("|".join(map(re.escape, longest_first)))

    def _answer(self, turn: Turn) -> str:
        assert not turn.steps, "conversations with tools are refused before"
        return self.answer(turn.answer, turn.reasoning)

    def answer(self, text: str, reasoning: str) -> str:
        """An answer, after its reasoning."""
        if not reasoning:
            return text
        assert self.think, "reasoning is refused before if the template has no part for it"
        return _fill(self.think, REASONING, reasoning) + text

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


# Without their colon they are still tokens, also in ChiMed-GPT's vocabulary.
ZIYA_TAGS = ("<human>:", "<bot>:", "<human>", "<bot>")

TEMPLATES: dict[str, Template] = {
    template.name: template
    for template in (
        # Fengshenbang's trainer concatenates turns without separator or begin of sequence; its
        # inference adds the latter.
        Template(name="ziya", prompt="<human>:{question}\n<bot>:", tags=ZIYA_TAGS),
        # Only the two tags are published; the rest follows `ziya`, the model's base.
        Template(
            name="chimed",
            prompt="[human]:{question}\n[bot]:",
            tags=("[human]:", "[bot]:", *ZIYA_TAGS),
        ),
        # Zhongjing's trainer: each turn starts with a begin of sequence, after a line break.
        Template(
            name="zhongjing",
            prompt="<human>:{question}\n<bot>:",
            separator="\n",
            system="{system}",
            bos="every",
            tags=ZIYA_TAGS,
        ),
    )
}
"""The published templates by name."""
