"""What stands around questions and answers: the three published ways, and any other.

A template yields segments, each of which a tokenizer encodes alone: where one segment ends and the
next begins is part of the format, because a sentencepiece model puts its dummy prefix at the start
of each. Texts are filled in literally, so braces in a question mean nothing, and a text that spells
one of the template's own tags cannot open a turn: `without_tags` takes it out.
"""

import dataclasses
import functools
import hashlib
import json
import re
from dataclasses import dataclass
from typing import Literal

from megatron_chimed.data.formats.example import Conversation, Turn
from megatron_chimed.errors import ConfigError

Targets = Literal["answers", "last", "all"]
TARGETS: tuple[Targets, ...] = ("answers", "last", "all")
BOS_CHOICES = ("none", "first", "every")

QUESTION = "{question}"
SYSTEM = "{system}"


@dataclass(frozen=True)
class Segment:
    """A piece that is encoded alone: a text or one control token."""

    text: str = ""
    """The text; empty for a control token."""

    control: Literal["", "bos", "eos"] = ""
    """The tokenizer's begin or end of sequence; empty for a text."""

    is_target: bool = False
    """Whether the model learns to write it."""


@dataclass(frozen=True, kw_only=True)
class Template:
    """A chat format. Every answer is a segment of its own and ends with the end of sequence."""

    name: str
    """For messages and files."""

    prompt: str
    """A turn up to its answer, with `{question}` in it once."""

    separator: str = ""
    """A segment of its own before each later turn, and between the system prompt and the first."""

    system: str = "{system}\n"
    """A segment before the first turn of conversations that have a system prompt."""

    bos: Literal["none", "first", "every"] = "none"
    """Which turns of training data start with the begin of sequence."""

    add_bos: bool = True
    """Whether a prompt for generation starts with it even where training data does not."""

    tags: tuple[str, ...] = ()
    """Texts that only the template may write: `without_tags` takes them out of all others."""

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            ConfigError: One is empty, holds a placeholder not exactly once, or is unknown.
        """
        for field, text, placeholder in (
            ("prompt", self.prompt, QUESTION),
            ("system", self.system, SYSTEM),
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
            raise ConfigError(f"template {self.name!r}: a name and tags may not be empty.")

    @functools.cached_property
    def identity(self) -> str:
        """Hex SHA-256 of all fields but the name: equal where all segments are equal."""
        fields = dataclasses.asdict(self)
        del fields["name"]
        text = json.dumps(fields, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8")).hexdigest()

    def render(
        self, conversation: Conversation, *, targets: Targets = "answers"
    ) -> list[list[Segment]]:
        """The segments of each turn; the last two of a turn are its answer and the end token.

        Args:
            conversation: What was said; its texts are used as they are.
            targets: What is learned: all answers with their end tokens, the last one only, or
                everything.
        """
        last = len(conversation.turns) - 1
        turns = []
        for number, turn in enumerate(conversation.turns):
            segments = self._opening(number, conversation.system)
            segments.append(Segment(_fill(self.prompt, QUESTION, turn.question)))
            if targets == "all":
                segments = [dataclasses.replace(item, is_target=True) for item in segments]
            is_target = targets != "last" or number == last
            segments.append(Segment(turn.answer, is_target=is_target))
            segments.append(Segment(control="eos", is_target=is_target))
            turns.append(segments)
        return turns

    def render_prompt(
        self, conversation: Conversation, *, for_generation: bool = True
    ) -> list[Segment]:
        """The segments before the last answer, from where a model goes on.

        Args:
            conversation: Its last answer is the empty text.
            for_generation: Start with the begin of sequence where `add_bos` says so; without it the
                segments are those of training data.
        """
        assert not conversation.turns[-1].answer, "the last answer of a prompt is still to come"
        segments = [segment for turn in self.render(conversation) for segment in turn][:-2]
        segments = [dataclasses.replace(segment, is_target=False) for segment in segments]
        if for_generation and self.add_bos and self.bos == "none":
            segments.insert(0, Segment(control="bos"))
        return segments

    def without_tags(self, conversation: Conversation) -> tuple[Conversation, int]:
        """The conversation with the template's tags taken out of its texts, and how many were."""
        texts = [conversation.system]
        texts += [text for turn in conversation.turns for text in (turn.question, turn.answer)]
        everything = "\0".join(texts)
        if not any(tag in everything for tag in self.tags):
            return conversation, 0
        cleaned = [self.remove_tags(text) for text in texts]
        system, *rest = [text for text, _ in cleaned]
        turns = tuple(map(Turn, rest[::2], rest[1::2]))
        return Conversation(turns, system), sum(removed for _, removed in cleaned)

    def remove_tags(self, text: str) -> tuple[str, int]:
        """A text without the tags, and how many were taken out; what then closes up is no tag."""
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

    def _opening(self, number: int, system: str) -> list[Segment]:
        """What stands before a turn's prompt."""
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


# Without their colon they are still tokens, of ChiMed-GPT's vocabulary too.
ZIYA_TAGS = ("<human>:", "<bot>:", "<human>", "<bot>")

TEMPLATES: dict[str, Template] = {
    template.name: template
    for template in (
        # Fengshenbang's trainer, which joins turns by nothing and has no begin of sequence; its
        # inference has one.
        Template(name="ziya", prompt="<human>:{question}\n<bot>:", tags=ZIYA_TAGS),
        # Only the two tags are published; the rest is as in `ziya`, from which the model was made.
        Template(
            name="chimed",
            prompt="[human]:{question}\n[bot]:",
            tags=("[human]:", "[bot]:", *ZIYA_TAGS),
        ),
        # Zhongjing's trainer: each turn starts anew, a line break apart.
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
