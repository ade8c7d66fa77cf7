"""Names on the command line to input files."""

import glob
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from megatron_chimed.data.reading.containers import HEAD_BYTES, find_container
from megatron_chimed.data.reading.streams import (
    COMPRESSION_SUFFIXES,
    compression_of,
    open_source,
)
from megatron_chimed.errors import ConfigError, DataError

SUFFIXES = (".csv", ".json", ".jsonl", ".parquet", ".tsv", ".txt")
"""What is read of a folder, each also behind one of `COMPRESSION_SUFFIXES`."""


@dataclass(frozen=True, kw_only=True)
class Input:
    """One input file and how its rows are found."""

    path: Path
    """Where it is."""

    compression: str
    """`gz`, `zst` or ""."""

    container: str
    """What holds its rows together: a name of `containers`."""

    size: int
    """Bytes of the file, compressed if it is."""

    columns: tuple[str, ...] = ()
    """Header of a table."""


def expand_inputs(names: Iterable[str | os.PathLike], *, text_key: str = "text") -> list[Input]:
    """The files that names stand for, in the order of the names, sorted within each.

    Args:
        names: Files, folders (with all below, of the suffixes in `SUFFIXES`, no hidden ones) or
            patterns as the shell has them (`**` too).
        text_key: Key of the text, by which an unknown table is recognised.

    Raises:
        ConfigError: A name stands for no file.
        DataError: A file is damaged or a table has no columns that are known.
    """
    return [_examine(path, text_key) for name in names for path in _paths(os.fspath(name))]


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
            f"{name!r} is no file, no folder and no pattern that matches one. Check the path."
        )
    return sorted(paths)


def _is_wanted(path: Path, folder: Path) -> bool:
    if not path.is_file() or any(part.startswith(".") for part in path.relative_to(folder).parts):
        return False
    bare = path.with_suffix("") if path.suffix in COMPRESSION_SUFFIXES else path
    return bare.suffix in SUFFIXES


def _examine(path: Path, text_key: str) -> Input:
    compression = compression_of(path)
    with open_source(path, compression) as source:
        container = find_container(source.read(HEAD_BYTES), path, text_key)
    if compression and container.name == "parquet":
        raise DataError(
            f"{path} is a Parquet file within .{compression}, which cannot be read in parts. "
            "Decompress it: Parquet compresses by itself."
        )
    return Input(
        path=path,
        compression=compression,
        container=container.name,
        size=path.stat().st_size,
        columns=container.columns,
    )
