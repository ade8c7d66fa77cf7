"""The questions of test files, each with its choices; answers are not needed and not read."""

import functools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_chimed.data.formats.example import (
    Conversation,
    Example,
    Ranking,
    UnpairedAnswer,
)
from megatron_chimed.data.formats.format import Format, ReadOptions, Row
from megatron_chimed.data.formats.row import NOTHING, RowError
from megatron_chimed.data.reading import InputFile, expand_inputs, format_of, iter_blocks, rows_of
from megatron_chimed.data.reading.encodings import UTF8
from megatron_chimed.errors import DataError

QUESTION_KEYS = ("question", "Question", "QUESTION", "题目", "题干", "问题", "text")
CHOICE_KEYS = ("options", "Options", "option", "choices", "choice", "选项")
COLUMNS = (*"ABCDEFGHIJ", "opa", "opb", "opc", "opd", "ope")
TEXT_KEYS = ("value", "text", "content", "option")  # of one choice that is an object
MARK = re.compile(r"(?:^|\s)[A-J]\s*[.．、:：)）\s]\s*")
FIRST_MARK = re.compile(r"^\s*[A-J]\s*[.．、:：)）]\s*")
LISTED = re.compile(r"^\s*A\s*[.．、:：)）].*\n\s*B\s*[.．、:：)）]", re.MULTILINE)
SHORT_QUESTION = 16  # characters; a shorter one needs its answer to be recognised


@dataclass(frozen=True, slots=True)
class ExamItem:
    """A question of a test file."""

    line: int
    """Its line, from 1; for Parquet, its row."""

    question: str
    """The question without choices."""

    choices: tuple[str, ...]
    """The choices without letters, () if there are none."""

    @property
    def segments(self) -> tuple[str, ...]:
        """Its parts, which may occur in any order."""
        return self.question, *self.choices


def exam_files(names: Sequence[str | os.PathLike], encoding: str = UTF8) -> list[InputFile]:
    """The test files that names stand for; a table is also one if only its questions are known.

    Args:
        names: Files, folders and patterns.
        encoding: Of the files that are not in UTF-8.

    Raises:
        ConfigError: A name matches no file.
        DataError: A file is damaged, or a table has no known columns.
    """
    return [entry for name in names for entry in _exam_files(name, encoding)]


def _exam_files(name: str | os.PathLike, encoding: str) -> list[InputFile]:
    reasons = []
    for key in QUESTION_KEYS:
        try:
            return expand_inputs([name], text_key=key, encoding=encoding, or_utf8=True)
        except DataError as error:
            reasons.append(error)
    raise reasons[0]


def read_exams(
    names: Sequence[str | os.PathLike], encoding: str = UTF8
) -> Iterator[tuple[str, list[ExamItem]]]:
    """The test files with their questions.

    Args:
        names: Files, folders and patterns.
        encoding: Of the files that are not in UTF-8.

    Raises:
        ConfigError: A name matches no file.
        DataError: A row is malformed, or a file has none.
    """
    for entry in exam_files(names, encoding):
        items: list[ExamItem] = []
        for block in iter_blocks([entry]):
            for bad in block.oversized:
                raise bad.error(entry.path, "Fix the row, or remove the test file.")
            for line, _, row in rows_of(block, entry):
                try:
                    items += _items(row, line, entry)
                except RowError as error:
                    raise DataError(
                        f"test file {entry.path}:{line}: {error}. Fix the row, or remove the file."
                    ) from None
        if not items:
            raise DataError(f"test file {entry.path} has no question. Is it the right file?")
        yield str(entry.path), items


def _items(row: Row | RowError, line: int, entry: InputFile) -> list[ExamItem]:
    if isinstance(row, RowError):
        raise row
    if isinstance(row, dict):
        for question in map(row.get, QUESTION_KEYS):
            if isinstance(question, str):
                choices = _choices(row)
                return [ExamItem(line, question, choices) if choices else _split(line, question)]
    options = ReadOptions(folder=entry.path.parent, encoding=entry.encoding)
    return [_prompt(line, example) for example in _format(entry).examples(row, options)]


def _choices(row: dict[str, Any]) -> tuple[str, ...]:
    """The choices of a row: under one key, in any shape, or one per column."""
    for key in CHOICE_KEYS:
        if row.get(key) not in NOTHING:
            return tuple(text for text in _texts(row[key]) if text.strip())
    columns = map(row.get, COLUMNS)
    return tuple(text for text in columns if isinstance(text, str) and text.strip())


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return MARK.split(value)
    if isinstance(value, list):
        return [text for choice in value for text in _texts_of_one(choice)]
    if isinstance(value, dict):
        inner = next((value[key] for key in TEXT_KEYS if isinstance(value.get(key), list)), None)
        return _texts(list(value.values()) if inner is None else inner)
    return [str(value)]


def _texts_of_one(choice: Any) -> list[str]:
    """The text of a choice: as such, after its letter, or in an object."""
    if isinstance(choice, dict):
        named = [choice[key] for key in TEXT_KEYS if isinstance(choice.get(key), str)]
        return named[:1] or [str(text) for text in choice.values()]
    return [FIRST_MARK.sub("", str(choice))]


def _split(line: int, text: str) -> ExamItem:
    """An item from a question that may list its choices."""
    listed = LISTED.search(text)
    if listed is None:
        return ExamItem(line, text, ())
    choices = tuple(choice for choice in MARK.split(text[listed.start() :]) if choice.strip())
    return ExamItem(line, text[: listed.start()], choices)


def _prompt(line: int, example: Example) -> ExamItem:
    """What an example of another format asks."""
    if isinstance(example, Ranking):
        return _prompt(line, example.prompt)
    if isinstance(example, UnpairedAnswer):
        return _prompt(line, example.conversation)
    if not isinstance(example, Conversation):
        return _split(line, example.text)
    item = _split(line, "\n".join(turn.question for turn in example.turns))
    if item.choices or len(item.question) >= SHORT_QUESTION:
        return item
    answers = tuple(turn.answer for turn in example.turns if turn.answer)
    return ExamItem(line, item.question, answers)


@functools.lru_cache(maxsize=1)
def _format(entry: InputFile) -> Format:
    return format_of(entry)
