"""Rows with names of the user's own: which column is the question, the answer, and so on.

The roles that are named decide what a row becomes. It is renamed to the keys of a format that
already exists, so that `system`, `history` and the checks of keys are the same for all.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_chimed.data.formats.row import RowError, key_list
from megatron_chimed.errors import ConfigError, DataError

OPTIONAL = {"system": "system", "history": "history"}

LAYOUTS: tuple[tuple[str, dict[str, str], dict[str, str]], ...] = (
    ("text", {"text": "text"}, {}),
    ("alpaca", {"question": "instruction", "answer": "output"}, {"input": "input", **OPTIONAL}),
    (
        "alpaca_preference",
        {"question": "instruction", "chosen": "chosen", "rejected": "rejected"},
        {"input": "input", **OPTIONAL},
    ),
    (
        "ranking",
        {"question": "prompt", "responses": "responses", "ranks": "ranks"},
        {"margins": "margins", **OPTIONAL},
    ),
    ("sharegpt", {"messages": "messages"}, OPTIONAL),
    (
        "sharegpt_preference",
        {"messages": "messages", "chosen": "chosen", "rejected": "rejected"},
        OPTIONAL,
    ),
)
"""Format, the key of each role that it needs, and of each role that it may have."""

ROLES = tuple(dict.fromkeys(role for _, keys, more in LAYOUTS for role in (*keys, *more)))
MISSING = object()


@dataclass(frozen=True)
class ColumnMap:
    """What the columns of a file are."""

    format: str
    """The format that reads the renamed rows."""

    columns: tuple[tuple[str, str, str], ...]
    """Role, column and key of each. A column within another is written `outer.inner`."""

    def rename(self, row: Any) -> dict[str, Any]:
        """The row under the keys of the format; other columns stay as they are.

        Raises:
            RowError: A column is missing that is needed, or the row is a line of text.
        """
        if not isinstance(row, dict):
            raise RowError("a line of text has no columns. Is the file JSON or a table?")
        taken = {_outer(row, column) for _, column, _ in self.columns}
        renamed = {key: value for key, value in row.items() if key not in taken}
        for role, column, key in self.columns:
            value = _value_at(row, column)
            if value is not MISSING:
                renamed[key] = value
            elif role in self._needed:
                raise RowError(f"no column {column!r} for {role} (columns: {key_list(row)})")
        return renamed

    def fits(self, row: Mapping[str, Any]) -> bool:
        """Whether a row has the columns that are needed."""
        return not any(
            role in self._needed and _value_at(row, column) is MISSING
            for role, column, _ in self.columns
        )

    def check(self, rows: Sequence[Any], path: Any) -> None:
        """Checks the columns against the first rows of a file.

        Raises:
            DataError: None of the rows has one of the columns.
        """
        found = [row for row in rows if isinstance(row, dict)]
        if rows and not found:
            raise DataError(
                f"{path}: its rows are lines of text, which have no columns for --columns. Is the "
                "file JSON or a table?"
            )
        for role, column, _ in self.columns:
            if found and all(_value_at(row, column) is MISSING for row in found):
                raise self.unknown(role, column, found[0], path)

    def unknown(self, role: str, column: str, row: Mapping[str, Any], path: Any) -> DataError:
        """The error that a file has no such column, with the one that was probably meant."""
        names = list(_names_in(row))
        hint = _near(column, names)
        did_you_mean = f" Did you mean {role}={hint}?" if hint else ""
        return DataError(
            f"{path}: --columns {role}={column}: there is no column {column!r}.{did_you_mean} Its "
            f"columns: {', '.join(names)}."
        )

    def absent(self, row: Mapping[str, Any]) -> tuple[str, str] | None:
        """Role and name of the first column that a row lacks."""
        for role, column, _ in self.columns:
            if _value_at(row, column) is MISSING:
                return role, column
        return None

    @property
    def _needed(self) -> frozenset[str]:
        return frozenset(next(keys for name, keys, _ in LAYOUTS if name == self.format))


def _near(word: str, known: Sequence[str]) -> str | None:
    """The known name that is closest; one of two Chinese characters is close enough."""
    return next(iter(difflib.get_close_matches(word, known, 1, cutoff=0.5)), None)


def _outer(row: Mapping[str, Any], column: str) -> str:
    return column if column in row else column.partition(".")[0]


def _value_at(row: Mapping[str, Any], column: str) -> Any:
    """The value of a column; a key that has dots itself goes before nested ones."""
    if column in row:
        return row[column]
    value: Any = row
    for part in column.split("."):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return MISSING
    return value


def _names_in(row: Mapping[str, Any]) -> list[str]:
    names = []
    for key, value in row.items():
        names.append(key)
        if isinstance(value, dict):
            names += [f"{key}.{inner}" for inner in value]
    return names


def column_map(words: Sequence[str]) -> ColumnMap | None:
    """Reads `question=题目,answer=解答`, in one word or several; None for no word.

    Raises:
        ConfigError: A role is unknown or given twice, or the roles together make no row.
    """
    given: dict[str, str] = {}
    for word in _assignments(words):
        role, _, column = word.partition("=")
        role = role.strip()
        if role not in ROLES:
            hint = _near(role, ROLES)
            did_you_mean = f" Did you mean {hint}?" if hint else ""
            raise ConfigError(
                f"--columns {word}: {role!r} is not a role.{did_you_mean} Roles: "
                f"{', '.join(ROLES)}."
            )
        if role in given or not column.strip():
            what = "is given twice" if role in given else "has no column"
            raise ConfigError(f"--columns {word}: {role} {what}. Write {role}=COLUMN once.")
        given[role] = column.strip()
    if not given:
        return None
    for name, needed, optional in LAYOUTS:
        keys = {**needed, **optional}
        if set(needed) <= set(given) <= set(keys):
            return ColumnMap(name, tuple((role, given[role], keys[role]) for role in given))
    ways = "; ".join(
        ", ".join(needed) + f" (and {', '.join(more)})" * bool(more) for _, needed, more in LAYOUTS
    )
    raise ConfigError(
        f"--columns names {', '.join(given)}, which make no row. Name one of: {ways}."
    )


def refuse_beside_columns(config: Any) -> None:
    """Refuses settings that `--columns` replaces.

    Args:
        config: A dataclass with the fields `format` and `text_key`.

    Raises:
        ConfigError: One of them is set.
    """
    for name in ("format", "text_key"):
        if getattr(config, name) != getattr(type(config), name):
            raise ConfigError(
                f"--{name.replace('_', '-')} has no effect with --columns, which says what the "
                "columns are. Remove one of the two."
            )


def _assignments(words: Sequence[str]) -> list[str]:
    """The assignments; a comma within the name of a column does not divide."""
    found: list[str] = []
    for word in words:
        for place, part in enumerate(word.split(",")):
            if "=" in part:
                found.append(part)
            elif part.strip() and place:
                found[-1] += "," + part
            elif part.strip():
                raise ConfigError(f"--columns {word}: {part!r} is not ROLE=COLUMN.")
    return found
