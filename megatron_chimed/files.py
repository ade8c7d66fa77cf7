"""Atomic writes: to a temporary name, synced, then renamed. Standard library only.

Invariant: a file or folder with its final name is complete. However a writer is stopped, what it
leaves behind starts with `.tmp-` in the same folder, is never read, and is removed by the next
writer of the same name.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

_Closed = TypeVar("_Closed", bound="Closing")

TEMPORARY_PREFIX = ".tmp-"
HASH_CHUNK_BYTES = 8 << 20
BLOCK_BYTES = 64 << 20
"""Data files have a digest of each block of this size: readers share a large file by blocks."""
SMALL_BYTES = 128 << 20
"""Larger than any JSON file or tokenizer that is read whole."""
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class Closing:
    """A base class for objects with `close()`, which a `with` statement then closes."""

    def __enter__(self: _Closed) -> _Closed:
        """Returns itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Closes it."""
        self.close()

    def close(self) -> None:
        """Releases what it holds; safe to call twice."""
        raise NotImplementedError


def fsync_directory(path: str | os.PathLike) -> None:
    """Makes renames inside the folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(path: str | os.PathLike) -> None:
    """Makes a file's content durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_path(final: str | os.PathLike) -> Path:
    """The name under which `final` is built: same folder, so that the rename is atomic."""
    final = Path(final)
    return final.with_name(f"{TEMPORARY_PREFIX}{final.name}")


def publish(temporary: str | os.PathLike, final: str | os.PathLike) -> None:
    """Syncs a finished file and gives it its final name, replacing an older file of that name."""
    fsync_file(temporary)
    os.replace(temporary, final)
    fsync_directory(Path(final).parent)


def remove(path: str | os.PathLike) -> None:
    """Removes a file, a link or a folder tree if it is there; never follows a link."""
    path = Path(path)
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)


@contextlib.contextmanager
def atomic_file(final: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path; publishes it on success, removes it on any error."""
    final = Path(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(final)
    remove(temporary)
    try:
        yield temporary
        publish(temporary, final)
    except BaseException:
        remove(temporary)
        raise


@contextlib.contextmanager
def atomic_directory(final: str | os.PathLike, *, replace: bool = False) -> Iterator[Path]:
    """Yields a temporary folder; on success syncs every file in it and renames it to `final`.

    Args:
        final: The folder.
        replace: It may exist with content, which is removed once the new folder has its name. After
            a kill between the two renames neither has the name.

    Raises:
        FileExistsError: `final` exists and is not an empty folder; nothing was touched.
    """
    final = Path(final)
    if not replace and final.exists() and (not final.is_dir() or any(final.iterdir())):
        raise FileExistsError(17, "output exists and is not empty", str(final))
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(final)
    remove(temporary)
    temporary.mkdir()
    try:
        yield temporary
        for folder, _, names in os.walk(temporary):
            for name in names:
                fsync_file(Path(folder, name))
            fsync_directory(folder)
        if replace and final.exists():
            old = temporary_path(temporary)
            remove(old)
            os.rename(final, old)
            try:
                os.rename(temporary, final)
            except BaseException:
                os.rename(old, final)
                raise
            remove(old)
        else:
            os.rename(temporary, final)
        fsync_directory(final.parent)
    except BaseException:
        remove(temporary)
        raise


@contextlib.contextmanager
def locked(path: str | os.PathLike, owner: str) -> Iterator[None]:
    """Holds a lock file for the block; the system frees it when the process ends, however it ends.

    Args:
        path: The lock file; removed afterwards.
        owner: Who holds it, for the message to others.

    Raises:
        BlockingIOError: Another process holds it; the message is what that owner wrote.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 4096).decode("utf-8", "replace").strip()
            raise BlockingIOError(error.errno, f"in use by {holder}", str(path)) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{owner}\n".encode())
        try:
            yield
        finally:
            os.unlink(path)
    finally:
        os.close(descriptor)


def open_plain(path: str | os.PathLike) -> BinaryIO:
    """Opens a regular file for reading; a pipe or a device could block for ever.

    Raises:
        OSError: It is not a regular file, or cannot be opened; `strerror` says why.
    """
    kind = stat.S_IFMT(os.stat(path).st_mode)
    if kind != stat.S_IFREG:
        raise OSError(errno.EINVAL, f"it is {_KINDS.get(kind, 'special')}, not a file", str(path))
    return open(path, "rb")


def read_small(path: str | os.PathLike) -> bytes:
    """The content of a file that should be small.

    Raises:
        OSError: As for `open_plain`, or the file has more than `SMALL_BYTES`.
    """
    with open_plain(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > SMALL_BYTES:
            raise OSError(errno.EFBIG, f"it has {size} bytes, more than {SMALL_BYTES}", str(path))
        return stream.read()


def sha256_file(path: str | os.PathLike) -> str:
    """Hex SHA-256 of a file's content, read in chunks."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


class BlockHash:
    """SHA-256 of a stream, and of each of its blocks of `BLOCK_BYTES`."""

    def __init__(self) -> None:
        self._whole, self._block = hashlib.sha256(), hashlib.sha256()
        self._room = BLOCK_BYTES
        self._full: list[str] = []

    def update(self, data: bytes | memoryview) -> None:
        """Adds bytes at the end."""
        view = memoryview(data)
        view = view.cast("B") if view.nbytes else memoryview(b"")  # an empty view cannot be cast
        self._whole.update(view)
        while len(view):
            if not self._room:
                self._full.append(self._block.hexdigest())
                self._block, self._room = hashlib.sha256(), BLOCK_BYTES
            part, view = view[: self._room], view[self._room :]
            self._block.update(part)
            self._room -= len(part)

    @property
    def sha256(self) -> str:
        """Hex digest of everything."""
        return self._whole.hexdigest()

    @property
    def block_sha256(self) -> list[str]:
        """Hex digests of the blocks, the last one possibly shorter."""
        return [*self._full, self._block.hexdigest()]


def write_text(path: str | os.PathLike, text: str) -> None:
    """Replaces a small text file atomically (UTF-8)."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Replaces a JSON file atomically; NaN and infinity are refused, since JSON has neither."""
    text = json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False)
    write_text(path, text + "\n")
