"""Finds the input files that names on the command line stand for."""

import glob
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from megatron_chimed.data.formats.columns import ColumnMap
from megatron_chimed.data.reading.containers import HEAD_BYTES, PARQUET_MAGIC, find_container
from megatron_chimed.data.reading.encodings import UTF8, encoding_named, encoding_of, is_utf8
from megatron_chimed.data.reading.input_stream import (
    COMPRESSION_SUFFIXES,
    compression_of,
    open_input,
)
from megatron_chimed.errors import ConfigError, DataError

SUFFIXES = (".csv", ".json", ".jsonl", ".parquet", ".tsv", ".txt")
"""Files read from a folder; each may be followed by one of `COMPRESSION_SUFFIXES`."""


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """An input file and how its rows are found."""

    path: Path
    """Its path."""

    compression: str
    """`gz`, `zst` or ""."""

    container: str
    """The container of its rows, as named in `containers`."""

    size: int
    """Size of the file in bytes, as stored."""

    columns: tuple[str, ...] = ()
    """The header of a table."""

    encoding: str = UTF8
    """Encoding of its texts, with the byte order; of no meaning for Parquet."""

    column_map: ColumnMap | None = None
    """How its columns are renamed; None: not at all."""

    ignored_keys: frozenset[str] = frozenset()
    """Keys that are taken off its rows before anything looks at them."""


def expand_inputs(
    names: Iterable[str | os.PathLike],
    *,
    text_key: str = "text",
    encoding: str = UTF8,
    column_map: ColumnMap | None = None,
    ignored_keys: Iterable[str] = (),
    or_utf8: bool = False,
) -> list[InputFile]:
    """The files that names stand for, in the order of the names, sorted within each.

    Args:
        names: Files, folders (read recursively: files with one of `SUFFIXES`, no hidden ones) or
            shell patterns (including `**`).
        text_key: Key of the text, by which a table without a known format is recognised.
        encoding: Encoding of the files that are texts.
        column_map: How columns are renamed, by which a table is recognised too.
        ignored_keys: Keys that are taken off the rows.
        or_utf8: Whether files in UTF-8 are read as such beside those in `encoding`.

    Raises:
        ConfigError: A name matches no file, or there is no such encoding.
        DataError: A file is damaged or in another encoding, or a table has no known columns.
    """
    encoding = encoding_named(encoding)
    paths = [path for name in names for path in _paths(os.fspath(name))]
    ignored = frozenset(ignored_keys)
    found = (_examine(path, text_key, encoding, or_utf8, column_map) for path in paths)
    return [replace(entry, ignored_keys=ignored) for entry in found]


def _paths(name: str) -> list[Path]:
    path = Path(name)
    if path.is_file():
        return [path]
    if path.is_dir():
        paths = [below for below in path.rglob("*") if _is_wanted(below, path)]
        if not paths:
            raise ConfigError(f"{name!r} is a folder without {', '.join(SUFFIXES)} files.")
    else:
        paths = [Path(match) for match in glob.glob(name, recursive=True) if Path(match).is_file()]
    if not paths:
        raise ConfigError(
            f"{name!r} is not a file or folder, and no file matches the pattern. Check the path."
        )
    return sorted(paths)


def _is_wanted(path: Path, folder: Path) -> bool:
    if not path.is_file() or any(part.startswith(".") for part in path.relative_to(folder).parts):
        return False
    bare = path.with_suffix("") if path.suffix in COMPRESSION_SUFFIXES else path
    return bare.suffix in SUFFIXES


def _examine(
    path: Path, text_key: str, encoding: str, or_utf8: bool, column_map: ColumnMap | None
) -> InputFile:
    compression = compression_of(path)
    with open_input(path, compression) as source:
        head = source.read(HEAD_BYTES)
    if head.startswith(PARQUET_MAGIC) or (or_utf8 and is_utf8(head)):
        encoding = UTF8
    else:
        encoding = encoding_of(encoding, head, path)
    if encoding != UTF8:
        with open_input(path, compression, encoding) as source:
            head = source.read(HEAD_BYTES)
    container = find_container(head, path, text_key, column_map)
    if compression and container.name == "parquet":
        raise DataError(
            f"{path} is a Parquet file compressed as .{compression}, which cannot be read in "
            "parts. Decompress it: Parquet has its own compression."
        )
    return InputFile(
        path=path,
        compression=compression,
        container=container.name,
        size=path.stat().st_size,
        columns=container.columns,
        encoding=encoding,
        column_map=column_map,
    )
