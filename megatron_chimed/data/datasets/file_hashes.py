"""The bytes of a prefix's files against the hashes in its sidecar, in units that ranks share.

A file with digests of its blocks is hashed block by block, one without as a whole. A stock Megatron
file has no hash to compare with: the digest of its blocks' digests identifies it from then on.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_chimed.data.datasets.indexed import file_paths
from megatron_chimed.data.datasets.prefix import Prefix, open_prefix
from megatron_chimed.data.datasets.sidecar import read_sidecar
from megatron_chimed.errors import DataError
from megatron_chimed.files import BLOCK_BYTES, HASH_CHUNK_BYTES, sha256_file


@dataclass(frozen=True, kw_only=True)
class DataFile:
    """One file of a prefix, and what its sidecar states about its content."""

    path: Path
    suffix: str
    """The path without the prefix."""
    size: int
    """Bytes."""
    version: str
    """Size, mtime, ctime and inode: they change with the content, unless the disk corrupts it."""
    sha256: str | None
    """As stated; None: not stated."""
    block_sha256: tuple[str, ...] = ()
    """Of each block, as stated; empty: not stated, or there is only one."""
    modified: float = 0.0
    """Later of mtime and ctime, in seconds."""

    @property
    def key(self) -> str:
        """Names this state of this file: equal keys have been verified against equal hashes."""
        text = f"{os.path.abspath(self.path)}\n{self.version}\n{self.sha256}"
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()

    @property
    def is_mask(self) -> bool:
        """Whether its bytes are 0 or 1."""
        return self.suffix.endswith(".mask.bin")


@dataclass(frozen=True)
class HashUnit:
    """A range of a file with one digest."""

    file: DataFile
    start: int
    """First byte."""
    size: int
    """Number of bytes."""
    sha256: str | None
    """As stated; None: not stated."""


def data_files(prefix: Prefix) -> list[DataFile]:
    """The files of an opened prefix besides its sidecar, which states what they hold."""
    sidecar = prefix.indexed.sidecar
    stated = {".bin": None, ".idx": None} if sidecar is None else sidecar.stated_sha256()
    blocks = {} if sidecar is None else sidecar.block_sha256
    found = []
    for suffix, sha256 in stated.items():
        path = Path(f"{prefix.name}{suffix}")
        stat = path.stat()
        found.append(
            DataFile(
                path=path,
                suffix=suffix,
                size=stat.st_size,
                version=f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}",
                sha256=sha256,
                block_sha256=tuple(blocks.get(suffix, ())),
                modified=max(stat.st_mtime, stat.st_ctime),
            )
        )
    return found


def open_explained(name: str) -> Prefix:
    """`open_prefix`; an error about damage also says which small file has another hash than stated.

    Raises:
        ConfigError: A file is missing.
        DataError: A file is damaged, or the files do not belong together.
    """
    try:
        return open_prefix(name)
    except DataError as error:
        if (found := _changed_file(name)) is not None:
            raise DataError(f"{error} {found}") from None
        raise


def _changed_file(name: str) -> str | None:
    """The first file with another hash than stated; token files are not read."""
    with contextlib.suppress(OSError, DataError):
        stated = read_sidecar(file_paths(name)[2]).stated_sha256()
        for path, sha256 in ((Path(f"{name}{suffix}"), each) for suffix, each in stated.items()):
            if sha256 is None or path.suffix == ".bin":
                continue
            if (found := sha256_file(path)) != sha256:
                return f"{path.name}: {_differs(found, sha256)}"
    return None


def hash_units(file: DataFile) -> list[HashUnit]:
    """The ranges that are hashed apart.

    Raises:
        DataError: The sidecar has digests of another number of blocks.
    """
    starts = range(0, max(file.size, 1), BLOCK_BYTES)
    if file.sha256 is not None and not file.block_sha256:
        return [HashUnit(file, 0, file.size, file.sha256)]
    stated: Sequence[str | None] = file.block_sha256 or [None] * len(starts)
    if len(stated) != len(starts):
        raise DataError(
            f"{file.path} has {file.size} bytes, which are {len(starts)} blocks, but its sidecar "
            f"has hashes of {len(stated)}. The files are from different runs: preprocess again."
        )
    return [
        HashUnit(file, start, min(BLOCK_BYTES, file.size - start), sha256)
        for start, sha256 in zip(starts, stated, strict=True)
    ]


def share_units(units: Sequence[HashUnit], shares: int) -> list[list[int]]:
    """Indices of the units of each share, evenly by size; one file's stay in order."""
    parts: list[list[int]] = [[] for _ in range(shares)]
    loads = [0] * shares
    for index in sorted(range(len(units)), key=lambda index: -units[index].size):
        share = loads.index(min(loads))
        parts[share].append(index)
        loads[share] += units[index].size
    return [sorted(part) for part in parts]


def verify_unit(unit: HashUnit) -> Iterator[int | str]:
    """Hashes a unit.

    Yields:
        The number of bytes after each read; last, the hex digest.

    Raises:
        DataError: The digest is not the stated one, a mask holds other values than 0 and 1, or the
            file has become shorter.
    """
    digest, left = hashlib.sha256(), unit.size
    buffer = memoryview(bytearray(min(HASH_CHUNK_BYTES, max(unit.size, 1))))
    wrong: str | None = None
    with open(unit.file.path, "rb", buffering=0) as stream:
        stream.seek(unit.start)
        while left:
            count = stream.readinto(buffer[: min(left, len(buffer))])
            if not count:
                raise DataError(
                    f"{unit.file.path} ends {left} bytes early: it was changed while it was "
                    "hashed. Do not change data that a run reads, and start the run again."
                )
            digest.update(buffer[:count])
            if unit.file.is_mask and wrong is None:
                wrong = _not_binary(buffer[:count], unit.start + unit.size - left)
            left -= count
            yield count
    found = digest.hexdigest()
    if unit.sha256 not in (None, found):
        raise mismatch(unit, found)
    if wrong is not None:
        raise DataError(f"{unit.file.path}, {wrong}. A mask is 0 or 1: preprocess again.")
    yield found


def mismatch(unit: HashUnit, found: str) -> DataError:
    """The error for a unit with another digest than stated."""
    is_whole = unit.size == unit.file.size
    where = "" if is_whole else f", bytes {unit.start} to {unit.start + unit.size - 1}"
    return DataError(f"{unit.file.path}{where}: {_differs(found, unit.sha256)}")


def _differs(found: str, stated: str | None) -> str:
    return (
        f"sha256 is {found}, but the sidecar states {stated}. The file was damaged, changed or "
        "replaced after preprocessing. Restore it from a copy, or preprocess again; "
        "`tools/inspect_dataset.py check` verifies a whole prefix."
    )


def joint_digest(digests: Sequence[str]) -> str:
    """Identifies a file without a stated hash by the digests of its blocks."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _not_binary(mask: memoryview, start: int) -> str | None:
    values = np.frombuffer(mask, np.uint8)
    if not len(values) or values.max() <= 1:
        return None
    first = int(np.argmax(values > 1))
    return f"byte {start + first}: the mask is {values[first]}"
