"""Rows of a task's files, whatever their container; a bad row has an error in its place."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from megatron_chimed.data.formats.row import RowError, parse_json
from megatron_chimed.data.reading import expand_inputs, iter_blocks, rows_of
from megatron_chimed.errors import DataError

_SPLIT = re.compile(r"[_.-](?:dev|test|train|val|valid)$")


class TaskRow(NamedTuple):
    """A row and where it is."""

    id: str
    """File name and line."""
    stem: str
    """The file's name without suffix and split."""
    row: dict[str, Any] | RowError


def read_task_rows(names: Sequence[str], text_key: str = "text") -> Iterator[TaskRow]:
    """All rows, in the order of files and lines; lines of text files are JSON objects.

    Args:
        names: Files, folders and patterns.
        text_key: A column of tables that no format of the library knows.

    Raises:
        ConfigError: A name matches no file.
        DataError: A file is damaged, or two files have one name.
    """
    files: dict[str, Path] = {}
    for entry in expand_inputs(names, text_key=text_key):
        name = entry.path.name
        if files.setdefault(name, entry.path) != entry.path:
            raise DataError(
                f"two files of {', '.join(names)} are named {name}: results are kept by file name. "
                "Rename one, or make two tasks of them."
            )
        stem = _SPLIT.sub("", name.split(".")[0])
        for block in iter_blocks([entry]):
            for bad in block.oversized:
                raise bad.error(entry.path, "Fix the row, or remove it.")
            for line, _, row in rows_of(block, entry):
                yield TaskRow(f"{name}:{line}", stem, _object(row))


def _object(row: Any) -> dict[str, Any] | RowError:
    if isinstance(row, str):
        try:
            row = parse_json(row.encode())
        except RowError as error:
            return error
    if isinstance(row, (dict, RowError)):
        return row
    return RowError("a row that is no object")
