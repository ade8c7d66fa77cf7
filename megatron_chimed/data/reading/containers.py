"""Detects the container of a file's rows from its first bytes.

    lines     one document of plain text per line
    jsonl     one JSON object per line
    values    JSON objects over several lines each
    array     one JSON array of objects
    keyed     one JSON object whose values are arrays of objects
    members   one JSON object whose values are the objects, such as questions by their id
    csv, tsv  a table with a header that a format knows
    dialogue  lines that start with `id`, `P` or `D` and a tab
    parquet   an Apache Parquet file

The file name decides nothing, except that what would pass for plain text is an error if the name
indicates something else.
"""

import csv
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from megatron_chimed.data.extension import extension
from megatron_chimed.data.formats.columns import ColumnMap
from megatron_chimed.data.formats.registry import FORMATS
from megatron_chimed.data.formats.string_lists import row_of_list
from megatron_chimed.data.reading.input_stream import COMPRESSION_SUFFIXES
from megatron_chimed.data.reading.row_splitters import DELIMITERS, DIALOGUE_START
from megatron_chimed.errors import DataError

HEAD_BYTES = 1 << 20
PROBED_LINES = 100
BOM = b"\xef\xbb\xbf"
PARQUET_MAGIC = b"PAR1"
SPACE = b" \t\r\n"
MEMBER = re.compile(rb'\{\s*"(?:[^"\\]|\\.)*"\s*:\s*(?=\{)')  # up to the first value
JSON_START = re.compile(rb"\[|\{\s*([\"}]|\Z)")  # a brace opens texts too

Recognise = Callable[[dict[str, Any]], bool]


class Container(NamedTuple):
    """The container of a file's rows, and the columns of a table."""

    name: str
    columns: tuple[str, ...] = ()


def find_container(
    head: bytes, path: Path, text_key: str, column_map: ColumnMap | None = None
) -> Container:
    """The container of a file.

    Args:
        head: Its first `HEAD_BYTES`, decompressed; fewer only if the file is shorter.
        path: Its name.
        text_key: Key of the text in rows of the format `text`.
        column_map: How columns are renamed; a row that has them is recognised.

    Raises:
        DataError: The name indicates a table, but no format knows its columns.
    """

    def recognised(row: dict[str, Any]) -> bool:
        if column_map is not None:
            return column_map.fits(row)
        return text_key in row or any(entry.recognise(row) for entry in FORMATS.values())

    if head.startswith(PARQUET_MAGIC):
        return Container("parquet")
    body = head.removeprefix(BOM).lstrip(SPACE)
    if not body:
        return Container("lines")
    lines = _first_lines(body, is_whole=len(head) < HEAD_BYTES)
    if JSON_START.match(body):
        name = _json_container(body, lines, recognised)
        return Container(name) if name else _plain(path, body, column_map)
    if body.startswith(DIALOGUE_START) and any(line[:2] in (b"P\t", b"D\t") for line in lines[1:2]):
        return Container("dialogue")
    for name, delimiter in DELIMITERS.items():
        columns = _columns(head.removeprefix(BOM), delimiter, recognised)
        if len(columns) > 1 or (columns and _suffix(path) in (".csv", ".tsv")):
            return Container(name, columns)
    if 2 * sum(_is_object(line) for line in lines) > len(lines):
        return Container("jsonl")  # its first row is damaged
    return _plain(path, body, column_map)


def _first_lines(body: bytes, is_whole: bool) -> list[bytes]:
    """The first complete, non-blank lines."""
    lines = body.split(b"\n")
    if not is_whole:
        lines.pop()
    return [line for line in lines if line.strip()][:PROBED_LINES]


def _json_container(body: bytes, lines: list[bytes], recognised: Recognise) -> str:
    """The container of text that starts with a bracket, "" if it is not JSON."""
    if body[:1] == b"[":
        inner = body[1:].strip(SPACE)
        if inner[:1] in (b"{", b"") or inner == b"]" or _is_array(body):
            return "array"
        return "jsonl" if lines and _parsed(lines[0]) is not None else ""
    # {"key": [row, ...]} differs from a row that holds a list by the entries of the list.
    row = _first_row(body, "keyed")
    whole = _first_row(body, "values")  # itself a row, it holds no rows
    if row is not None and recognised(row) and not (whole is not None and recognised(whole)):
        return "keyed"
    if _has_members(body, recognised) and not (whole is not None and recognised(whole)):
        return "members"
    if any(map(_is_object, lines)):
        return "jsonl"
    is_long = len(body) >= HEAD_BYTES - len(SPACE) and len(lines) > 1
    return "values" if is_long or _first_row(body, "values") is not None else "jsonl"


def _has_members(body: bytes, recognised: Recognise) -> bool:
    """Whether the first value inside an object, the only one of the text, is a row."""
    member = MEMBER.match(body)
    if member is None or len(extension().JsonRows("values").feed(body)) > 1:
        return False  # of several objects, each is a row, whatever is in it
    row = _first_row(body[member.end() :], "values")
    return row is not None and recognised(row)


def _is_array(body: bytes) -> bool:
    """Whether the text is the beginning of an array."""
    scanner = extension().JsonRows("array")
    return len(scanner.feed(body)) > 0 and not scanner.error


def _first_row(body: bytes, layout: str) -> dict[str, Any] | None:
    """The first row of a layout if it is an object, or a list that stands for one."""
    table = extension().JsonRows(layout).feed(body)
    if not len(table):
        return None
    begin, end = map(int, table[0, :2])
    row = row_of_list(_parsed(body[begin:end]))
    return row if isinstance(row, dict) else None


def _parsed(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None


def _is_object(line: bytes) -> bool:
    return line.startswith(b"{") and isinstance(_parsed(line), dict)


def _columns(head: bytes, delimiter: str, recognised: Recognise) -> tuple[str, ...]:
    """The header of a table, () if no format knows its rows."""
    ends = extension().CsvRows(delimiter).feed(head)
    start = head[: int(ends[1])] if len(ends) > 1 else head
    try:
        records = csv.reader(io.StringIO(start.decode("utf-8"), newline=""), delimiter=delimiter)
        header, first = next(records, []), next(records, [])
    except (UnicodeDecodeError, csv.Error):
        return ()
    first += [""] * (len(header) - len(first))
    is_known = len(set(header)) == len(header) and recognised(
        dict(zip(header, first, strict=False))
    )
    return tuple(header) if is_known else ()


def _suffix(path: Path) -> str:
    return (path.with_suffix("") if path.suffix in COMPRESSION_SUFFIXES else path).suffix


def _plain(path: Path, body: bytes, column_map: ColumnMap | None) -> Container:
    """Plain text, unless the name indicates otherwise."""
    suffix = _suffix(path)
    if suffix in (".json", ".jsonl"):
        return Container("jsonl")  # its rows will be reported as malformed
    first = body.split(b"\n", 1)[0][:200].decode("utf-8", "replace").strip()
    if suffix in (".csv", ".tsv"):
        if column_map is not None:
            header = next(csv.reader([first], delimiter=DELIMITERS[suffix[1:]]), [])
            row = dict.fromkeys(header, "")
            role, column = column_map.absent(row) or column_map.columns[0][:2]
            raise column_map.unknown(role, column, row, path)
        raise DataError(
            f"{path}: no format knows this table, whose first line is {first!r}. For plain texts, "
            "pass their column with --text-key. For questions and answers, rename the columns to "
            "those of a format in docs/formats.md, such as 'question' and 'answer'."
        )
    if suffix == ".parquet":
        raise DataError(f"{path} does not start like a Parquet file. Replace it if it is damaged.")
    return Container("lines")
