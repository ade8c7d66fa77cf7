"""Multiple choice questions from files, in every format of exam rows that docs/formats.md shows."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_chimed.data.formats.exam import ExamQuestion
from megatron_chimed.data.formats.format import Format, Row
from megatron_chimed.data.formats.row import RowError
from megatron_chimed.data.reading import InputFile, expand_inputs, format_of, iter_blocks, rows_of
from megatron_chimed.errors import DataError

_SPLIT = re.compile(r"_(?:dev|test|train|val|valid)$")  # C-Eval's files: anatomy_val.csv
SUBJECT_KEYS = ("subject", "exam_subject", "exam_class", "exam_type", "meta_info", "subject_name")


@dataclass(frozen=True, kw_only=True)
class ChoiceItem:
    """A row of a test file."""

    id: str
    """File and line."""
    group: str
    """The file's name without suffix and split, or the row's value under the group key."""
    subject: str
    """What it is about, in words; "" if unknown."""
    question: ExamQuestion | None
    """None: the row cannot be used."""
    problem: str | None = None
    """Why it cannot."""


def read_questions(
    names: Sequence[str], *, group_key: str | None, subjects: dict[str, str]
) -> list[ChoiceItem]:
    """Reads questions in the order of files and rows; a bad row becomes an item with a problem.

    Args:
        names: Files, folders and patterns.
        group_key: Key of a row whose value is its group; None: its file is.
        subjects: Words for groups.

    Raises:
        ConfigError: A name matches no file.
        DataError: A file is damaged, is not of multiple choice questions, or none can be used.
    """
    items: list[ChoiceItem] = []
    for entry in expand_inputs(names, text_key="question"):
        kind = _exam_format(entry)
        stem = _SPLIT.sub("", entry.path.name.split(".")[0])
        for block in iter_blocks([entry]):
            for bad in block.oversized:
                raise bad.error(entry.path, "Fix the row, or remove it.")
            for line, _, row in rows_of(block, entry):
                items.append(_item(row, kind, f"{entry.path.name}:{line}", stem, group_key))
    items = _unique(items, names)
    if not any(item.question for item in items):
        reasons = sorted({item.problem for item in items if item.problem})
        why = f": {reasons[0]}" if reasons else ""
        raise DataError(f"{', '.join(names)}: no question can be used{why}. Check the files.")
    return [_with_subject(item, subjects) for item in items]


def _exam_format(entry: InputFile) -> Format:
    """The format of a file of questions.

    Raises:
        DataError: Its rows are something else.
    """
    kind = format_of(entry)
    if kind.read_question is None:
        raise DataError(
            f"{entry.path} has rows of the format {kind.name}, which are not multiple choice "
            "questions. They need a question, choices and an answer; docs/formats.md shows the "
            "forms."
        )
    return kind


def _item(
    row: Row | RowError, kind: Format, place: str, stem: str, group_key: str | None
) -> ChoiceItem:
    group = stem
    try:
        if isinstance(row, RowError):
            raise row
        if not isinstance(row, dict) or kind.read_question is None:
            raise RowError("a text instead of an object")
        if group_key is not None:
            if row.get(group_key) in (None, ""):
                raise RowError(f"no value under the group key {group_key!r}")
            group = str(row[group_key])
        question = kind.read_question(row)
        subject = question.subject or _subject(row)
    except RowError as error:
        return ChoiceItem(id=place, group=group, subject="", question=None, problem=str(error))
    return ChoiceItem(id=place, group=group, subject=subject, question=question)


def _subject(row: dict[str, Any]) -> str:
    values = (row.get(key) for key in SUBJECT_KEYS)
    return next((value for value in values if isinstance(value, str) and value), "")


def _with_subject(item: ChoiceItem, subjects: dict[str, str]) -> ChoiceItem:
    if item.group not in subjects:
        return item
    return ChoiceItem(
        id=item.id,
        group=item.group,
        subject=subjects[item.group],
        question=item.question,
        problem=item.problem,
    )


def _unique(items: list[ChoiceItem], names: Sequence[str]) -> list[ChoiceItem]:
    """The items; ids are file names and lines, which must tell them apart.

    Raises:
        DataError: Two files have one name.
    """
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            name = Path(item.id.rsplit(":", 1)[0]).name
            raise DataError(
                f"two files of {', '.join(names)} are named {name}: results are kept by file "
                "name. Rename one, or make two tasks of them."
            )
        seen.add(item.id)
    return items
