"""cMedQA2: questions and answers in two tables, joined by number.

https://github.com/zhangsheng93/cMedQA2. Rows of answer.csv become conversations. Rows of the
candidate files become pairs (`question_id,pos_ans_id,neg_ans_id`), or conversations where the label
is 1 (`question_id,ans_id,cnt,label`). The tables, question.csv and answer.csv, must be in the
folder of the file that is read.
"""

import csv
import functools
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from megatron_chimed.data.formats.example import Example, Turn
from megatron_chimed.data.formats.format import Format, JsonRow, ReadOptions
from megatron_chimed.data.formats.row import (
    RowError,
    conversation_of,
    has_texts,
    ranking_of,
    text_at,
)
from megatron_chimed.errors import DataError

UTF8 = "utf-8"
NUMBER = re.compile(r"[0-9]{1,18}")
SHAPES = (
    ("ans_id", "question_id", "content"),
    ("question_id", "pos_ans_id", "neg_ans_id"),
    ("question_id", "ans_id", "cnt", "label"),
    ("question_id", "content"),
)


def _recognise(row: JsonRow) -> bool:
    return any(has_texts(row, *keys) for keys in SHAPES)


def _read(row: JsonRow, options: ReadOptions) -> Sequence[Example]:
    if has_texts(row, "question_id", "content") and "ans_id" not in row:
        raise DataError("this table has questions only. Pass answer.csv, which refers to them.")
    question = _text(options, "question", row, "question_id")
    if "content" in row:
        return (conversation_of(row, [Turn(question, text_at(row, "content"))]),)
    if "label" in row:
        if text_at(row, "label").strip() != "1":
            return ()
        answer = _text(options, "answer", row, "ans_id")
        return (conversation_of(row, [Turn(question, answer)]),)
    sides = [_text(options, "answer", row, key) for key in ("pos_ans_id", "neg_ans_id")]
    return (ranking_of(row, question, sides, (0, 1)),)


def _text(options: ReadOptions, table: str, row: JsonRow, key: str) -> str:
    number = text_at(row, key)
    path = options.folder / f"{table}.csv"
    if not NUMBER.fullmatch(number.strip()):
        raise RowError(f"{key!r} is {number!r}, not a number")
    key_column = "ans_id" if table == "answer" else "question_id"
    text = _table(path, key_column, options.encoding).find(int(number))
    if text is None:
        raise RowError(f"{key} {number} is not in {path}")
    return text


@functools.lru_cache(maxsize=2)
def _table(path: Path, key: str, encoding: str) -> "_Table":
    return _Table(path, key, encoding)


class _Table:
    """The texts of a table by number. Only their byte offsets are in memory: 16 bytes a row.

    A table that is not in UTF-8 is in memory as a whole.
    """

    def __init__(self, path: Path, key: str, encoding: str) -> None:
        if not path.is_file():
            raise DataError(
                f"{path} does not exist: cMedQA2 rows refer to texts by number. Put "
                "question.csv and answer.csv beside the file."
            )
        self.path = path
        self.content: bytes | None = None  # in UTF-8, if the file is not
        numbers, places = [], []
        try:
            if encoding != UTF8:
                self.content = _as_utf8(path.read_bytes(), encoding)
            for columns, place in self._records():
                if not places:
                    self._check_columns(columns, key)
                numbers.append(columns[self.columns.index(key)])
                places.append(place)
            keys = np.array(numbers[1:], np.int64)
        except (ValueError, IndexError, csv.Error) as error:
            raise DataError(
                f"{path} is not a table of numbers and texts: {error}. Replace the file, or "
                "pass --encoding if it is in another one."
            ) from None
        order = np.argsort(keys, kind="stable")
        self.keys = keys[order]
        self.places = np.array(places[1:], np.int64)[order]

    def _check_columns(self, columns: list[str], key: str) -> None:
        if key not in columns or "content" not in columns:
            raise DataError(f"{self.path} has columns {columns}, not {key} and content.")
        self.columns = columns

    def _records(self) -> Iterator[tuple[list[str], int]]:
        place = end = 0

        def lines() -> Iterator[str]:
            nonlocal end
            for raw in stream:
                end += len(raw)
                yield raw.decode("utf-8-sig" if end == len(raw) else "utf-8")

        with self._open() as stream:
            for record in csv.reader(lines()):
                yield record, place
                place = end

    def _open(self) -> BinaryIO:
        return open(self.path, "rb") if self.content is None else io.BytesIO(self.content)

    def find(self, number: int) -> str | None:
        """The text of a number."""
        at = int(np.searchsorted(self.keys, number))
        if at == len(self.keys) or self.keys[at] != number:
            return None
        with self._open() as stream:
            stream.seek(int(self.places[at]))
            record = next(csv.reader(io.TextIOWrapper(stream, "utf-8", newline="")))
        return record[self.columns.index("content")]


def _as_utf8(content: bytes, encoding: str) -> bytes | None:
    """A table in UTF-8; None if it is already."""
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode(encoding).encode("utf-8")
    return None


CMEDQA2 = Format(
    name="cmedqa2",
    recognise=_recognise,
    read=_read,
    keys=frozenset({key for shape in SHAPES for key in shape}),
    sample={"ans_id": "1", "question_id": "7", "content": "请到皮肤科就诊。"},
)
