"""Cuts input files into blocks of whole rows: the unit of work of parallel preprocessing.

The cuts depend on the files alone, never on the number of workers. A single process does this, so
it only finds the ends of rows; `rows.py` parses them in the workers.
"""

import io
from collections.abc import Iterator, Sequence

from megatron_chimed.data.reading import row_block
from megatron_chimed.data.reading.containers import BOM
from megatron_chimed.data.reading.encodings import UTF8, OwnBytes, Utf8Stream
from megatron_chimed.data.reading.input_files import InputFile
from megatron_chimed.data.reading.input_stream import InputStream, open_input
from megatron_chimed.data.reading.row_block import MAX_ROW_BYTES, BadRow, RowBlock, oversized_reason
from megatron_chimed.data.reading.row_splitters import (
    JSON_CONTAINERS,
    NO_CUT,
    Cut,
    Problem,
    splitter_for,
)
from megatron_chimed.errors import DataError


def iter_blocks(
    inputs: Sequence[InputFile], *, first_file: int = 0, max_row_bytes: int = MAX_ROW_BYTES
) -> Iterator[RowBlock]:
    """Reads the files in order; skips a byte-order mark at the start of a file.

    Memory: one block and one row.

    Args:
        inputs: From `expand_inputs`.
        first_file: Index of the first file to read; earlier ones are skipped.
        max_row_bytes: A longer row is skipped and listed as malformed.

    Raises:
        DataError: A file is damaged so that its rows cannot be found: compressed data are
            truncated, brackets or quotes are not closed.
    """
    for number in range(first_file, len(inputs)):
        source = inputs[number]
        if source.container == "parquet":
            from megatron_chimed.data.reading.parquet import parquet_blocks

            yield from parquet_blocks(source.path, file=number, max_row_bytes=max_row_bytes)
        else:
            with open_input(source.path, source.compression, source.encoding) as stream:
                yield from _Cutter(stream, source, number, max_row_bytes).blocks()


class _Cutter:
    """The state of reading one file: the bytes of the unfinished row, and where it starts."""

    def __init__(
        self, source: InputStream | Utf8Stream, entry: InputFile, file: int, max_row_bytes: int
    ) -> None:
        self.source = source
        self.encoding = entry.encoding
        # Of all bytes before the block, in the encoding of the file; None: they are UTF-8.
        self.own = None if entry.encoding == UTF8 else OwnBytes(entry.encoding)
        self.block_own = 0
        self.splitter = splitter_for(entry.container)
        self.is_json = entry.container in JSON_CONTAINERS
        self.file = file
        self.max_row_bytes = max_row_bytes
        self.number = 0
        self.start = 0  # bytes of a byte-order mark
        self.line = 1
        self.offset = 0
        self.key: bytes | None = None
        self.held = io.BytesIO()  # grows, and returns its bytes, without a second copy
        self.size = 0  # bytes since `offset`, held or skipped
        self.is_skipping = False
        self.skipped_lines = 0

    def blocks(self) -> Iterator[RowBlock]:
        piece = self.source.read(max(row_block.BLOCK_BYTES, len(BOM)))
        if piece.startswith(BOM):
            self.start = self.offset = len(BOM)
            self._count(BOM)
            self.block_own = self.own.size if self.own else 0
            piece = piece[len(BOM) :] or self.source.read(row_block.BLOCK_BYTES)
        while piece:
            yield from self._take(piece, self.splitter.feed(piece))
            self._raise(self.splitter.problem(is_end=False))
            piece = self.source.read(row_block.BLOCK_BYTES)
        self._raise(self.splitter.problem(is_end=True))
        if self.is_skipping:
            yield self._skipped(NO_CUT)
        elif self.size and not self.is_json:  # a last row without a line end
            yield self._block(NO_CUT)

    def _take(self, piece: bytes, cut: Cut) -> Iterator[RowBlock]:
        end = cut.last
        if self.is_skipping:
            self.size += cut.first or len(piece)
            self._count(piece[: cut.first or len(piece)])
            self.skipped_lines += piece.count(b"\n", 0, cut.first or len(piece))
            if not cut.first:
                return
            yield self._skipped(cut)
            piece, end = piece[cut.first :], cut.last - cut.first
        if end:
            self.held.write(memoryview(piece)[:end])
            yield self._block(cut)
        if end < len(piece):
            self.held.write(memoryview(piece)[end:])
            self.size += len(piece) - end
        if self.size > self.max_row_bytes:
            self.is_skipping = True
            self.skipped_lines = self.held.getvalue().count(b"\n")
            self._count(self.held.getvalue())
            self.held = io.BytesIO()

    def _block(self, cut: Cut) -> RowBlock:
        block = self._made(self.held.getvalue())
        self._count(block.data)
        self._advance(len(block.data), block.data.count(b"\n"), cut.keys[1])
        return block

    def _skipped(self, cut: Cut) -> RowBlock:
        offset, line = self.offset, self.line
        if cut.start is not None:
            offset, line = self.start + cut.start[0], cut.start[1] + 1
        reason = oversized_reason(self.offset + self.size - offset, self.max_row_bytes)
        bad = BadRow(line=line, offset=self._own_offset(offset), reason=reason)
        block = self._made(b"", (bad,))
        self._advance(self.size, self.skipped_lines, cut.keys[0])
        self.is_skipping = False
        return block

    def _made(self, data: bytes, oversized: tuple[BadRow, ...] = ()) -> RowBlock:
        return RowBlock(
            file=self.file,
            number=self.number,
            first_line=self.line,
            offset=self._own_offset(self.offset),
            data=data,
            position=self.source.position,
            max_row_bytes=self.max_row_bytes,
            oversized=oversized,
            key=self.key,
        )

    def _advance(self, size: int, lines: int, key: bytes) -> None:
        self.number += 1
        self.offset += size
        self.line += lines
        self.key = key
        self.held = io.BytesIO()
        self.size = 0
        self.block_own = self.own.size if self.own else 0

    def _count(self, piece: bytes) -> None:
        if self.own is not None:
            self.own.feed(piece)

    def _own_offset(self, offset: int) -> int:
        """A place in the current block, as a byte offset in the encoding of the file."""
        if self.own is None:
            return offset
        before = self.held.getvalue()[: offset - self.offset]
        if len(before) < offset - self.offset:  # skipped: only separators are before a long row
            before = b" " * (offset - self.offset)
        return self.block_own + OwnBytes(self.encoding).feed(before)

    def _raise(self, problem: Problem | None) -> None:
        if problem is None:
            return
        line, offset = self.line, self.offset
        if problem.place is not None:
            offset, line = self.start + problem.place[0], problem.place[1] + 1
        offset = self._own_offset(offset)
        raise DataError(
            f"{self.source.path}:{line}:{offset} (line:byte): {problem.reason}. The rows after it "
            "cannot be found: fix or replace the file."
        )
