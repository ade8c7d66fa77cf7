"""A block: consecutive rows of one file, not yet parsed."""

import os
from dataclasses import dataclass

from megatron_chimed.errors import DataError

BLOCK_BYTES = 1 << 20
MAX_ROW_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class BadRow:
    """A malformed row and its location."""

    line: int
    """Line number from 1; in a Parquet file, the number of the row."""

    offset: int
    """Byte offset in the decompressed file; in a Parquet file, the index of the row."""

    reason: str
    """What is wrong, for the user."""

    def error(self, file: str | os.PathLike, advice: str) -> DataError:
        """The error that names this row."""
        return DataError(f"{file}:{self.line}:{self.offset} (line:byte): {self.reason}. {advice}")


@dataclass(kw_only=True)
class RowBlock:
    """Consecutive whole rows of one file.

    Not frozen: the parser takes the rows out, so that their memory is freed while others still hold
    the block.
    """

    file: int
    """Index of the file in the list of inputs."""

    number: int
    """Index of the block in its file."""

    first_line: int
    """Number of the first line, from 1."""

    offset: int
    """Byte offset of the block in the decompressed file, in the encoding of the file."""

    data: bytes
    """The rows with their separators, in UTF-8; for Parquet, a batch of rows as an Arrow stream."""

    position: int
    """Bytes of the file on disk read when the block was complete, for progress."""

    max_row_bytes: int = MAX_ROW_BYTES
    """A longer row is malformed."""

    oversized: tuple[BadRow, ...] = ()
    """Rows that were too long to hold in memory; a block with any has no data."""

    key: bytes | None = None
    """None at the start of a file. For JSON containers, the key (as written) of the array that the
    previous row was in; empty without keys."""

    def take(self) -> bytes:
        """Removes the rows from the block and returns them."""
        data, self.data = self.data, b""
        return data


def oversized_reason(size: int, limit: int) -> str:
    """Why a row is skipped."""
    return f"a row of {size} bytes, more than --max-row-bytes {limit}"
