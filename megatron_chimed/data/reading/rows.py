"""Parses a block of bytes into rows: the part of reading that workers do."""

import csv
import json
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import orjson

from megatron_chimed.data.extension import extension
from megatron_chimed.data.formats.columns import ColumnMap
from megatron_chimed.data.formats.format import Row
from megatron_chimed.data.formats.row import RowError, decode, parse_json
from megatron_chimed.data.formats.string_lists import row_of_list
from megatron_chimed.data.reading.encodings import UTF8, own_places
from megatron_chimed.data.reading.input_files import InputFile
from megatron_chimed.data.reading.row_block import RowBlock, oversized_reason
from megatron_chimed.data.reading.row_splitters import DELIMITERS, DIALOGUE_START, JSON_CONTAINERS

LocatedRow = tuple[int, int, Row | RowError]
"""Line (from 1), byte offset in the decompressed file, and the row or the error."""

GROUP_START = re.compile(b"^" + DIALOGUE_START, re.MULTILINE)


def rows_of(block: RowBlock, entry: InputFile) -> Iterator[LocatedRow]:
    """Takes the rows out of a block, malformed ones as `RowError`; skips blank lines.

    No text of a row contains a NUL or a lone surrogate. Rows of a Parquet file, which have neither
    line nor byte offset, have their number and index instead.

    Args:
        block: From `iter_blocks`.
        entry: The input file of the block.
    """
    if not block.data:
        return iter(())
    if entry.encoding == UTF8:
        found = _parsed_rows(block, entry)
    else:
        data = block.data
        found = own_places(_parsed_rows(block, entry), data, block.offset, entry.encoding)
    if entry.ignored_keys:
        found = _without(found, entry.ignored_keys)
    return found if entry.column_map is None else _renamed(found, entry.column_map)


def _parsed_rows(block: RowBlock, entry: InputFile) -> Iterator[LocatedRow]:
    if entry.container == "parquet":
        from megatron_chimed.data.reading.parquet import parquet_rows

        yield from parquet_rows(block)
    elif entry.container in JSON_CONTAINERS:
        yield from _values(block, entry)
    elif entry.container in DELIMITERS:
        yield from _records(block, entry)
    elif entry.container == "dialogue":
        yield from _groups(block)
    else:
        yield from _lines(block, parse_object if entry.container == "jsonl" else parse_line)


def _without(found: Iterator[LocatedRow], keys: frozenset[str]) -> Iterator[LocatedRow]:
    for line, offset, row in found:
        if isinstance(row, dict):
            yield line, offset, {key: value for key, value in row.items() if key not in keys}
        else:
            yield line, offset, row


def _renamed(found: Iterator[LocatedRow], column_map: ColumnMap) -> Iterator[LocatedRow]:
    for line, offset, row in found:
        if isinstance(row, RowError):
            yield line, offset, row
            continue
        try:
            yield line, offset, column_map.rename(row)
        except RowError as error:
            yield line, offset, error


def parse_object(raw: bytes | memoryview) -> dict[str, Any]:
    """Parses a row of a JSON container; a list of strings becomes an object that holds it.

    Raises:
        RowError: The row is malformed or neither.
    """
    row = row_of_list(parse_json(raw))
    if not isinstance(row, dict):
        raise RowError(f"the row is of type {type(row).__name__}, not an object")
    return row


def parse_line(raw: bytes) -> str:
    """Decodes a line of text without its line end.

    Raises:
        RowError: The line is not UTF-8 or contains a NUL.
    """
    if b"\x00" in raw:
        raise RowError("NUL character in the text")
    return decode(raw.removesuffix(b"\r"))


def parse_record(raw: bytes, entry: InputFile) -> dict[str, str]:
    """Parses a record of a table, by column.

    Raises:
        RowError: The record is malformed or differs from the header in its number of fields.
    """
    text = parse_line(raw)
    try:
        fields = next(csv.reader([text], delimiter=DELIMITERS[entry.container], strict=True))
    except csv.Error as error:
        raise RowError(f"malformed table row: {error}") from None
    if len(fields) != len(entry.columns):
        raise RowError(f"{len(fields)} fields in a table of {len(entry.columns)} columns")
    return dict(zip(entry.columns, fields, strict=True))


def _attempt(parse: Callable[..., Row], raw: bytes | memoryview, limit: int) -> Row | RowError:
    if len(raw) > limit:
        return RowError(oversized_reason(len(raw), limit))
    try:
        return parse(raw)
    except RowError as error:
        return error


def _lines(block: RowBlock, parse: Callable[[bytes], Row]) -> Iterator[LocatedRow]:
    offset, limit = block.offset, block.max_row_bytes
    for line, raw in enumerate(block.take().split(b"\n"), start=block.first_line):
        if raw and not raw.isspace():
            yield line, offset, _attempt(parse, raw, limit)
        offset += len(raw) + 1


def _values(block: RowBlock, entry: InputFile) -> Iterator[LocatedRow]:
    is_start = block.key is None
    is_members = entry.container == "members"
    layout = "values" if is_members else entry.container
    scanner = extension().JsonRows(layout, not is_start, block.key or b"")
    data = block.take()
    table = scanner.feed(data).tolist()
    assert not scanner.error, f"a block was cut in the wrong place: {scanner.error}"
    keys = scanner.keys
    table += scanner.feed(b" ").tolist()  # a row that is a number ends only with the next byte
    for begin, end, lines, key in table:
        line, offset = block.first_line + lines, block.offset + begin
        if is_members and end - begin <= block.max_row_bytes:
            yield from _members(data[begin:end], line, offset)
            continue
        row = _attempt(parse_object, memoryview(data)[begin:end], block.max_row_bytes)
        if isinstance(row, dict) and entry.container == "keyed":
            row.setdefault("type", _key(keys[key]))
        yield line, offset, row


def _members(raw: bytes, line: int, offset: int) -> Iterator[LocatedRow]:
    """The values of an object, each a row of its own."""
    try:
        text = decode(raw)
        spans = _member_spans(text)
    except RecursionError:
        yield line, offset, RowError("JSON nested too deeply")
        return
    except RowError as error:
        yield line, offset, error
        return
    before, names = 0, set()
    for name, begin, end in spans:
        line += text.count("\n", before, begin)
        offset += len(text[before:begin].encode("utf-8", "surrogatepass"))
        before = begin
        value = text[begin:end].encode("utf-8", "surrogatepass")
        row = _attempt(parse_object, value, len(value))
        yield line, offset, RowError(f"repeated key {name!r}") if name in names else row
        names.add(name)


def _member_spans(text: str) -> list[tuple[str, int, int]]:
    """Names of an object's members, and where their values are.

    Raises:
        RowError: The text is malformed.
    """
    read, gap = json.JSONDecoder(strict=False).raw_decode, re.compile(r"[\s,:]*")
    try:
        json.loads(text, strict=False)  # commas and colons are where they belong
    except ValueError as reason:
        raise RowError(f"malformed JSON: {reason}") from None
    spans, place = [], _end_of(gap, text, text.index("{") + 1)
    while text[place] != "}":
        name, place = read(text, place)
        begin = _end_of(gap, text, place)
        _, end = read(text, begin)
        spans.append((name, begin, end))
        place = _end_of(gap, text, end)
    return spans


def _end_of(pattern: re.Pattern[str], text: str, place: int) -> int:
    match = pattern.match(text, place)
    return place if match is None else match.end()


def _key(written: bytes) -> str:
    try:
        return orjson.loads(b'"' + written + b'"')
    except orjson.JSONDecodeError:
        return written.decode("utf-8", "replace")


def _records(block: RowBlock, entry: InputFile) -> Iterator[LocatedRow]:
    # csv limits fields to 128 KiB, process-wide; rows are limited by `max_row_bytes` instead.
    csv.field_size_limit(sys.maxsize)
    data = block.take()
    ends = extension().CsvRows(DELIMITERS[entry.container]).feed(data).tolist()
    if not ends or ends[-1] < len(data):
        ends.append(len(data))
    parse = partial(parse_record, entry=entry)
    line, begin = block.first_line, 0
    is_header = block.key is None
    for end in ends:
        raw = data[begin:end]
        if not raw.isspace():
            if not is_header:
                offset = block.offset + begin
                yield line, offset, _attempt(parse, raw.removesuffix(b"\n"), block.max_row_bytes)
            is_header = False
        line += raw.count(b"\n")
        begin = end


def _groups(block: RowBlock) -> Iterator[LocatedRow]:
    data = block.take()
    starts = [match.start() for match in GROUP_START.finditer(data)]
    bounds = sorted({0, *starts, len(data)})
    line = block.first_line
    for begin, end in zip(bounds, bounds[1:], strict=False):
        raw = data[begin:end]
        if not raw.isspace():
            row = _attempt(parse_line, raw.rstrip(b"\r\n"), block.max_row_bytes)
            yield line, block.offset + begin, row
        line += raw.count(b"\n")
