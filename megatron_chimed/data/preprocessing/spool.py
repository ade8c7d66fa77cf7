"""Append-only files in a locked folder, from which a killed run can go on.

A spool's committed size is what a journal says of it: opened again, it is cut to that size, so
whatever was appended after the journal's entry never was.
"""

import fcntl
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from megatron_chimed.data.preprocessing.journal import NAME as JOURNAL_NAME
from megatron_chimed.errors import ConfigError, DataError, OutputError
from megatron_chimed.files import (
    HASH_CHUNK_BYTES,
    Closing,
    fsync_directory,
    remove,
    temporary_path,
)

LOCK_NAME = "lock"


class Spool:
    """A file that only grows.

    Args:
        path: Made if missing.
        size: Bytes to keep of what is there.
        hashed: Whether `sha256` is wanted; what is kept is read for it.

    Attributes:
        size: Bytes so far.

    Raises:
        DataError: The file is shorter than `size`.
    """

    def __init__(self, path: Path, size: int = 0, *, hashed: bool = False) -> None:
        self.path = path
        self.size = size
        self._digest = hashlib.sha256() if hashed else None
        self._stream = open(path, "ab")  # closed by close
        found = os.fstat(self._stream.fileno()).st_size
        if found < size:
            self._stream.close()
            raise DataError(
                f"{path}: {found} bytes, but the journal beside it counts {size}. The disk lost "
                f"data: remove {path.parent} and start again."
            )
        self._stream.truncate(size)
        if hashed and size:
            self._hash_kept()

    @property
    def sha256(self) -> str:
        """Hex digest of all that was appended."""
        assert self._digest is not None, f"{self.path.name} is not hashed"
        return self._digest.hexdigest()

    def append(self, data: bytes | memoryview) -> None:
        """Adds bytes at the end."""
        self._stream.write(data)
        self.size += memoryview(data).nbytes
        if self._digest is not None:
            self._digest.update(data)

    def append_file(self, path: Path) -> str:
        """Adds the whole of a file; two threads hash while this one copies.

        Returns:
            Hex SHA-256 of that file alone.
        """
        own = hashlib.sha256()
        digests = [own] if self._digest is None else [own, self._digest]
        with open(path, "rb") as stream, ThreadPoolExecutor(len(digests)) as pool:
            while chunk := stream.read(HASH_CHUNK_BYTES):
                hashing = [pool.submit(digest.update, chunk) for digest in digests]
                self._stream.write(chunk)
                self.size += len(chunk)
                for future in hashing:
                    future.result()
        return own.hexdigest()

    def flush(self) -> None:
        """Lets readers of the file see everything; not durable yet."""
        self._stream.flush()

    def sync(self) -> None:
        """Makes everything so far durable."""
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Ends the writing; the file stays."""
        self._stream.close()

    def _hash_kept(self) -> None:
        with open(self.path, "rb") as stream:
            while chunk := stream.read(HASH_CHUNK_BYTES):
                self._digest.update(chunk)


class WorkFolder(Closing):
    """The folder `.tmp-NAME.work` in which the files of one prefix grow, held by one process.

    A context manager. On leaving, it is removed with all it holds, unless `keep` was set.

    Args:
        prefix: Output prefix; its folder is made.

    Attributes:
        path: The folder. It may hold what a killed run left.
        keep: Whether the folder outlives the `with` block.
        was_there: Whether a killed run left it.

    Raises:
        OutputError: Another process is writing this prefix, or the folder cannot be made.
    """

    def __init__(self, prefix: str | os.PathLike) -> None:
        self.path = temporary_path(f"{prefix}.work")
        self.keep = False
        self.was_there = self.path.exists()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"{self.path} cannot be made: {error.strerror}. Name another output prefix."
            ) from None
        fsync_directory(self.path.parent)
        self._lock = _lock(self.path / LOCK_NAME)

    def sweep(self) -> None:
        """Removes everything in it but the lock.

        The journal goes first, for good: one that outlived what it counts could not be followed.
        """
        remove(self.path / JOURNAL_NAME)
        fsync_directory(self.path)
        for path in self.path.iterdir():
            if path.name != LOCK_NAME:
                remove(path)

    def close(self) -> None:
        """Frees the lock, and removes the folder unless it is to be kept."""
        if self._lock.closed:
            return
        if not self.keep:
            self.sweep()
            remove(self.path)
        self._lock.close()


def check_prefix(prefix: str) -> None:
    """Refuses an output prefix that ends in a folder: its files would have no name.

    Raises:
        ConfigError: It does.
    """
    if os.path.basename(prefix) in ("", ".", ".."):
        raise ConfigError(
            f"--output-prefix {prefix!r} names a folder, so that its files would be hidden ones "
            f"such as .bin. Add a name: {os.path.join(prefix, 'corpus')!r}."
        )


def _lock(path: Path) -> BinaryIO:
    """Locks the file as long as the stream is open; the system frees it if this process dies."""
    stream = open(path, "a+b")  # closed by WorkFolder.close
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_ours = path.exists() and os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except BlockingIOError:
        is_ours = False
    if not is_ours:  # locked, or removed by its owner between our two calls
        stream.seek(0)
        owner = stream.read(4096).decode("utf-8", "replace").strip() or "another process"
        stream.close()
        raise OutputError(
            f"{path.parent} is being written by {owner}. Wait for it, or choose another output "
            "prefix."
        )
    stream.truncate(0)
    stream.write(f"process {os.getpid()} on {os.uname().nodename}".encode())
    stream.flush()
    return stream
