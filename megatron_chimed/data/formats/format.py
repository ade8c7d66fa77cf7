"""What a format is: how its rows look, and how a row becomes examples."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_chimed.data.formats.annotations import annotated, without_reasoning
from megatron_chimed.data.formats.exam import ExamQuestion
from megatron_chimed.data.formats.example import Conversation, Example, Ranking
from megatron_chimed.data.formats.keys import (
    MESSAGE_KEYS,
    MESSAGE_ONE_OF,
    REASON,
    KeyTable,
    UnreadKeys,
    key_table,
    refuse_meanings,
    unread_names,
)
from megatron_chimed.data.formats.row import SYSTEM_KEYS, RowError

PLAIN_KEYS = 2  # of a message: its role and its text
JsonRow = dict[str, Any]
"""A JSON object, or a row of a table by column."""

CONTEXT_KEYS = frozenset({*SYSTEM_KEYS, "history"})
"""Keys that every format of conversations or rankings reads."""

Row = JsonRow | str
"""What readers yield: an object, or a text (a line, or a group of dialogue lines)."""


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """What a format may need in addition to the row."""

    text_key: str = "text"
    """Key of the text in rows of the format `text`."""

    folder: Path = Path(".")
    """Folder of the input file, for formats whose texts are in files beside it."""

    encoding: str = "utf-8"
    """Encoding of those files that are not in UTF-8."""

    strict_keys: bool = False
    """Whether a key that nothing reads makes a row bad."""

    drop_reasoning: bool = False
    """Whether reasoning before an answer is left out."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """One format of input rows."""

    name: str
    """Its name for `--format`."""

    recognise: Callable[[JsonRow], bool]
    """Whether an object looks like this format; keys and types decide, never a file name."""

    read: Callable[[JsonRow, ReadOptions], Sequence[Example]]
    """The examples of an object, often one. Raises `RowError` if the row does not fit."""

    keys: frozenset[str]
    """Keys that it reads, and those that its page says it drops; `keys.py` judges all others.
    `system` and `history` need not be listed."""

    one_of: tuple[tuple[str, ...], ...] = ()
    """Groups of keys that say the same thing: if a row has two of a group, they must be equal."""

    message_lists: tuple[str, ...] = ()
    """Keys with a message or a list of messages, whose own keys are judged too."""

    message_keys: frozenset[str] = MESSAGE_KEYS
    """Keys of a message that it reads."""

    recognise_text: Callable[[str], bool] | None = None
    """As `recognise`, for a text; None: the format has no texts."""

    read_text: Callable[[str], Sequence[Example]] | None = None
    """As `read`, for a text; None: the format has no texts."""

    read_question: Callable[[JsonRow], ExamQuestion] | None = None
    """Reads a multiple choice question, whose answer is checked; None: the format has none."""

    sample: Row
    """A row as a file would hold it; docs/formats.md shows it."""

    def fits(self, row: Row) -> bool:
        """Whether a row looks like this format."""
        if isinstance(row, str):
            return self.recognise_text is not None and self.recognise_text(row)
        return self.recognise(row)

    def examples(
        self, row: Row, options: ReadOptions, unread: UnreadKeys | None = None
    ) -> Sequence[Example]:
        """The examples of a row.

        Args:
            row: An object or a text.
            options: What is needed beyond the row.
            unread: Counts keys that nothing reads.

        Raises:
            RowError: The row does not fit, or a key that is not read changes what it means.
        """
        if isinstance(row, str):
            return self._examples_of_text(row)
        if self.reads_texts:
            table = key_table(tuple(row), _one(options.text_key), (), "text")
        else:
            table = key_table(tuple(row), self._used, self.one_of, "row")
        examples = self.read(row, options)
        has_messages = bool(self.message_lists)
        if table.is_clear and not (has_messages or table.annotations or options.drop_reasoning):
            return examples  # the fast way for most
        is_clear = table.is_clear and not has_messages
        ignored = [] if is_clear else self._ignored(row, table, options, examples)
        annotations = table.annotations
        if options.drop_reasoning:
            annotations = tuple(entry for entry in annotations if entry[1] != REASON)
            examples = [without_reasoning(example) for example in examples]
        if annotations:
            examples = annotated(row, examples, annotations)
        if unread is not None:
            for name, value in ignored:
                unread.add(name, value)
        return examples

    @property
    def reads_texts(self) -> bool:
        """Whether its rows are plain texts, without question and answer."""
        return self.name == "text"

    @functools.cached_property
    def _used(self) -> frozenset[str]:
        return self.keys | CONTEXT_KEYS

    def _ignored(
        self, row: JsonRow, table: KeyTable, options: ReadOptions, examples: Sequence[Example]
    ) -> list[tuple[str, Any]]:
        """The unread keys of a row and its messages, with their values.

        Raises:
            RowError: A key changes what the row means, or is unread where that is an error.
        """
        ignored = []
        if not table.is_clear:
            texts = _texts_of(examples) if table.refused else ()
            refuse_meanings(row, table, texts=texts)
            ignored = [(name, row[name]) for name in unread_names(row, table)]
        for key in self.message_lists:
            messages = row.get(key)
            if messages is None:
                continue
            for place, message in enumerate(
                messages if isinstance(messages, list) else [messages], start=1
            ):
                if not isinstance(message, dict):
                    continue  # left to the format
                if len(message) == PLAIN_KEYS and message.keys() <= self.message_keys:
                    continue  # a role and a text: the fast way for most
                table = key_table(tuple(message), self.message_keys, MESSAGE_ONE_OF, "message")
                if table.is_clear:
                    continue
                refuse_meanings(message, table, f"message {place} of {key!r}: ")
                names = unread_names(message, table)
                ignored += [(f"{key}[].{name}", message[name]) for name in names]
        if ignored and options.strict_keys:
            raise RowError(f"key {ignored[0][0]!r} is not read, which --strict-keys forbids")
        return ignored

    def _examples_of_text(self, text: str) -> Sequence[Example]:
        if self.read_text is None:
            raise RowError(
                f"a line of text, but rows of the format {self.name} are objects. Is the file JSON?"
            )
        return self.read_text(text)


@functools.lru_cache(maxsize=16)
def _one(name: str) -> frozenset[str]:
    return frozenset({name})


def _texts_of(examples: Sequence[Example]) -> set[str]:
    """The stripped texts of a row's examples, for keys that repeat one."""
    texts: set[str] = set()
    for example in examples:
        if isinstance(example, Ranking):
            texts.update(map(str.strip, example.candidates))
        conversation = example.prompt if isinstance(example, Ranking) else example
        if isinstance(conversation, Conversation):
            for turn in conversation.turns:
                texts |= {turn.question.strip(), turn.answer.strip()}
    return texts
