"""A block: consecutive rows of one file, not parsed yet."""

import os
from dataclasses import dataclass

from megatron_chimed.errors import DataError

BLOCK_BYTES = 1 << 20
MAX_ROW_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class BadRow:
    """A malformed row and where it lies."""

    line: int
    """From 1; the row's number in a Parquet file."""

    offset: int
    """Byte in the decompressed file; the row's place from 0 in a Parquet file."""

    reason: str
    """What is wrong, for people."""

    def error(self, file: str | os.PathLike, advice: str) -> DataError:
        """The error that names this row."""
        return DataError(f"{file}:{self.line}:{self.offset} (line:byte): {self.reason}. {advice}")


@dataclass(kw_only=True)
class Block:
    """Consecutive whole rows of one file.

    Not frozen: whoever parses the rows takes them out, so that they are freed while the block is
    still known to those it came from.
    """

    file: int
    """Place of the file in the list of inputs."""

    number: int
    """Of the block in its file, from 0."""

    first_line: int
    """Number of the first line, from 1."""

    offset: int
    """Byte in the decompressed file at which the block starts."""

    data: bytes
    """The rows with what separates them; for Parquet a batch of rows as an Arrow stream."""

    position: int
    """Bytes of the file on disk that were read when this block was complete, for progress."""

    max_row_bytes: int = MAX_ROW_BYTES
    """A row of more bytes is malformed."""

    oversized: tuple[BadRow, ...] = ()
    """Rows that were too long to hold; a block that has any has no data."""

    key: bytes | None = None
    """None at the start of a file. For JSON containers: the rows before these were in the array of
    this key (as written; empty without keys)."""

    def take(self) -> bytes:
        """The rows, which the block then no longer has."""
        data, self.data = self.data, b""
        return data


def oversized_reason(size: int, limit: int) -> str:
    """Why a row is not read."""
    return f"a row of {size} bytes, more than --max-row-bytes {limit}"
