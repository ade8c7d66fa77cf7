"""Cuts input files into blocks of whole lines: the unit of work of parallel preprocessing.

Where the cuts fall depends on the files alone, never on the number of workers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from megatron_chimed.data.formats.registry import BOM
from megatron_chimed.errors import DataError

BLOCK_BYTES = 1 << 20
MAX_LINE_BYTES = 64 << 20  # bounds the memory that a file without line ends would take


@dataclass(frozen=True, kw_only=True)
class Block:
    """Consecutive whole lines of one file."""

    file: int
    """Place of the file in the list of inputs."""

    first_line: int
    """Number of the first line, from 1."""

    offset: int
    """Byte offset of the first line."""

    data: bytes
    """The lines with their ends."""


def iter_blocks(files: list[Path]) -> Iterator[Block]:
    """Reads the files one after another; a byte-order mark at a file's start is left out.

    Raises:
        DataError: A line is longer than `MAX_LINE_BYTES`.
    """
    for number, path in enumerate(files):
        yield from _blocks_of(path, number)


def _blocks_of(path: Path, number: int) -> Iterator[Block]:
    line, offset, rest = 1, 0, b""
    with open(path, "rb") as stream:
        if stream.read(len(BOM)) == BOM:
            offset = len(BOM)
        stream.seek(offset)
        while chunk := stream.read(BLOCK_BYTES):
            data = rest + chunk
            end = data.rfind(b"\n") + 1
            block, rest = data[:end], data[end:]
            if len(rest) > MAX_LINE_BYTES:
                line += block.count(b"\n")
                raise DataError(
                    f"{path}:{line}:{offset + end}: a line longer than {MAX_LINE_BYTES} bytes. "
                    "One document per line is expected: is this file of another format?"
                )
            if block:
                yield Block(file=number, first_line=line, offset=offset, data=block)
                line += block.count(b"\n")
                offset += len(block)
    if rest:
        yield Block(file=number, first_line=line, offset=offset, data=rest)
