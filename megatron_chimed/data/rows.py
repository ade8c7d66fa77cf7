"""From lines to texts: decoding, the file's format, and what is wrong with a row."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from megatron_chimed.data.blocks import Block, iter_blocks
from megatron_chimed.data.formats.registry import AUTO, FORMATS, detect_format
from megatron_chimed.data.formats.row import RowError
from megatron_chimed.errors import DataError


@dataclass(frozen=True, kw_only=True)
class BadRow:
    """A malformed row and where it lies."""

    line: int
    """From 1."""

    offset: int
    """Byte offset of the line in its file."""

    reason: str
    """What is wrong, for people."""

    def error(self, file: str | os.PathLike, advice: str) -> DataError:
        """The error that names this row."""
        return DataError(f"{file}:{self.line}:{self.offset} (line:byte): {self.reason}. {advice}")


@dataclass(kw_only=True)
class ParsedBlock:
    """The texts of one block and what else it held."""

    file: int
    """Place of the file in the list of inputs."""

    size: int
    """Bytes of the block, for progress."""

    texts: list[str] = field(default_factory=list)
    """Texts with content, in order."""

    bad: list[BadRow] = field(default_factory=list)
    """Malformed rows, in order."""

    rows: int = 0
    """Lines that are not blank."""

    blank: int = 0
    """Blank lines."""

    empty: int = 0
    """Rows whose text is empty or only white space."""


def parse_block(block: Block, name: str, text_key: str) -> ParsedBlock:
    """The texts of a block's lines; malformed rows are listed, never raised.

    Args:
        block: Whole lines.
        name: Of their format, in `FORMATS`.
        text_key: Key of the text in JSON rows.
    """
    parsed = ParsedBlock(file=block.file, size=len(block.data))
    parse = FORMATS[name]
    offset = block.offset
    for line, raw in enumerate(_lines(block.data), start=block.first_line):
        if not raw.strip():
            parsed.blank += 1
        else:
            parsed.rows += 1
            try:
                text = parse(_decode(raw), text_key)
            except RowError as error:
                parsed.bad.append(BadRow(line=line, offset=offset, reason=str(error)))
            else:
                _keep(parsed, text)
        offset += len(raw) + 1
    return parsed


def iter_texts(
    files: Iterable[str | os.PathLike], *, name: str = AUTO, text_key: str = "text"
) -> Iterator[str]:
    """The texts of corpus files, one after another.

    Args:
        files: Paths.
        name: Of their format, or `auto`.
        text_key: Key of the text in JSON rows.

    Raises:
        DataError: A row is malformed.
    """
    paths = [Path(file) for file in files]
    formats = [detect_format(path, name) for path in paths]
    for block in iter_blocks(paths):
        parsed = parse_block(block, formats[block.file], text_key)
        if parsed.bad:
            raise parsed.bad[0].error(paths[block.file], "Correct the row.")
        yield from parsed.texts


def _lines(data: bytes) -> list[bytes]:
    lines = data.split(b"\n")
    return lines[:-1] if data.endswith(b"\n") else lines


def _keep(parsed: ParsedBlock, text: str) -> None:
    if text.strip():
        parsed.texts.append(text)
    else:
        parsed.empty += 1


def _decode(raw: bytes) -> str:
    try:
        return raw.removesuffix(b"\r").decode("utf-8")
    except UnicodeDecodeError as error:
        raise RowError(
            f"invalid UTF-8: byte 0x{raw[error.start]:02X} at byte {error.start} of the line"
        ) from None
