"""Turns the rows of a file into examples or plain texts."""

import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from megatron_chimed.data.formats.example import Example, example_text
from megatron_chimed.data.formats.format import Row
from megatron_chimed.data.formats.keys import UnreadKeys
from megatron_chimed.data.formats.registry import (
    AUTO,
    FORMATS,
    TEXT_KEY,
    Format,
    ReadOptions,
    detect_format,
    find_format,
)
from megatron_chimed.data.formats.row import RowError
from megatron_chimed.data.reading.blocks import iter_blocks
from megatron_chimed.data.reading.input_files import InputFile, expand_inputs
from megatron_chimed.data.reading.row_block import RowBlock
from megatron_chimed.data.reading.rows import rows_of
from megatron_chimed.errors import DataError

PROBED_ROWS = 16
PROBED_BYTES = 8 << 20  # or until the first row


def format_of(entry: InputFile, name: str = AUTO, *, text_key: str = TEXT_KEY) -> Format:
    """The format of a file: the given one, or the one that fits its first valid rows.

    A file without a valid row counts as text, so that each of its rows is reported as malformed.

    Raises:
        ConfigError: There is no such format.
        DataError: No format fits the rows, a column is missing, or the file is damaged.
    """
    if name != AUTO:
        return find_format(name)
    plain = dataclasses.replace(entry, column_map=None)
    rows: list[Row] = []
    for block in iter_blocks([plain]):
        valid = (row for _, _, row in rows_of(block, plain) if not isinstance(row, RowError))
        rows += itertools.islice(valid, PROBED_ROWS - len(rows))
        if len(rows) == PROBED_ROWS or (rows and block.position >= PROBED_BYTES):
            break
    if entry.column_map is not None:
        entry.column_map.check(rows, entry.path)
        return FORMATS[entry.column_map.format]
    return detect_format(rows, entry.path, text_key) if rows else FORMATS["text"]


def examples_of(
    block: RowBlock,
    entry: InputFile,
    kind: Format,
    *,
    options: ReadOptions | None = None,
    unread: UnreadKeys | None = None,
) -> Iterator[tuple[int, int, Sequence[Example] | RowError]]:
    """Per row of a block: line, byte, and its examples or the error.

    Args:
        block: From `iter_blocks`.
        entry: The input file of the block.
        kind: The format of the file.
        options: How rows are read; folder and encoding are set here.
        unread: Counts keys that nothing reads.

    Raises:
        DataError: A file that the format needs in addition to the input is missing.
    """
    options = replace(options or ReadOptions(), folder=entry.path.parent, encoding=entry.encoding)
    for line, offset, row in rows_of(block, entry):
        if isinstance(row, RowError):
            yield line, offset, row
            continue
        try:
            examples: Sequence[Example] | RowError = kind.examples(row, options, unread)
        except RowError as error:
            examples = error
        yield line, offset, examples


def iter_texts(
    files: Iterable[str | os.PathLike], *, name: str = AUTO, text_key: str = TEXT_KEY
) -> Iterator[str]:
    """The texts of corpus files, in order; a conversation is one text.

    Args:
        files: Files, folders and patterns.
        name: Name of their format, or `auto`.
        text_key: Key of the text in rows of the format `text`.

    Raises:
        ConfigError: A name matches no file.
        DataError: A row is malformed.
    """
    for entry in expand_inputs(files, text_key=text_key):
        kind = format_of(entry, name, text_key=text_key)
        for block in iter_blocks([entry]):
            for bad in block.oversized:
                raise bad.error(entry.path, "Fix the row.")
            yield from _texts(block, entry, kind, text_key)


def _texts(block: RowBlock, entry: InputFile, kind: Format, text_key: str) -> Iterator[str]:
    options = ReadOptions(text_key=text_key)
    for line, offset, examples in examples_of(block, entry, kind, options=options):
        if isinstance(examples, RowError):
            place = f"{entry.path}:{line}:{offset} (line:byte)"
            raise DataError(f"{place}: {examples}. Fix the row.")
        for example in examples:
            text = example_text(example)
            if text.strip():
                yield text
