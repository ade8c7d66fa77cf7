"""The work folder of one output prefix: a lock, append-only files and a journal to resume from.

Output grows in spools, append-only files. The journal is one small JSON file that records how far
the run is and how many bytes of each spool count. Spools are synced before the journal is replaced,
so whatever the journal counts is on disk, even after a power cut. A resumed run cuts each spool to
its recorded size: whatever was appended after the last journal entry is discarded.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from megatron_chimed.errors import ConfigError, DataError, OutputError
from megatron_chimed.files import (
    HASH_CHUNK_BYTES,
    BlockHash,
    Closing,
    fsync_directory,
    remove,
    temporary_path,
    write_text,
)

JOURNAL_NAME = "journal.json"
JOURNAL_VERSION = 2  # raise it whenever the same input would give different bytes
LOCK_NAME = "lock"


class Spool:
    """An append-only file.

    Args:
        path: Created if missing.
        size: Bytes of the existing file to keep.
        hashed: Whether to compute `sha256`; the kept bytes are read for it.

    Attributes:
        size: Bytes so far.

    Raises:
        DataError: The file is shorter than `size`.
    """

    def __init__(self, path: Path, size: int = 0, *, hashed: bool = False) -> None:
        self.path = path
        self.size = size
        self._digest = BlockHash() if hashed else None
        self._stream = open(path, "ab")  # closed by close
        found = os.fstat(self._stream.fileno()).st_size
        if found < size:
            self._stream.close()
            raise DataError(
                f"{path}: {found} bytes, but the journal beside it counts {size}. The disk lost "
                f"data: remove {path.parent} and start again."
            )
        self._stream.truncate(size)
        if self._digest is not None and size:
            _hash_file(path, self._digest)

    @property
    def is_hashed(self) -> bool:
        """Whether it computes hashes."""
        return self._digest is not None

    @property
    def sha256(self) -> str:
        """Hex digest of everything appended."""
        assert self._digest is not None, f"{self.path.name} is not hashed"
        return self._digest.sha256

    @property
    def block_sha256(self) -> list[str]:
        """Hex digest of each block of `BLOCK_BYTES`, as `files.BlockHash` gives them."""
        assert self._digest is not None, f"{self.path.name} is not hashed"
        return self._digest.block_sha256

    def append(self, data: bytes | memoryview) -> None:
        """Adds bytes at the end."""
        self._stream.write(data)
        self.size += memoryview(data).nbytes
        if self._digest is not None:
            self._digest.update(data)

    def append_file(self, path: Path) -> str:
        """Appends a whole file; other threads hash while this one copies.

        Returns:
            Hex SHA-256 of that file alone.
        """
        own = hashlib.sha256()
        updates: list[Callable[[bytes], None]] = [own.update]
        if self._digest is not None:
            updates.append(self._digest.update)
        with open(path, "rb") as stream, ThreadPoolExecutor(len(updates)) as pool:
            while chunk := stream.read(HASH_CHUNK_BYTES):
                hashing = [pool.submit(update, chunk) for update in updates]
                self._stream.write(chunk)
                self.size += len(chunk)
                for future in hashing:
                    future.result()
        return own.hexdigest()

    def flush(self) -> None:
        """Makes everything so far visible to readers of the file, but not yet durable."""
        self._stream.flush()

    def sync(self) -> None:
        """Makes everything so far durable."""
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Closes the file, which stays."""
        self._stream.close()


def _hash_file(path: Path, digest: BlockHash) -> None:
    with open(path, "rb") as stream:
        while chunk := stream.read(HASH_CHUNK_BYTES):
            digest.update(chunk)


class Journal:
    """The state of one run, on disk.

    Args:
        folder: The work folder.
        fingerprint: Everything the output depends on, by name; JSON values.

    Attributes:
        state: The last state saved by a run with the same fingerprint, or None.
        is_found: Whether the folder holds a run, whatever its fingerprint.
        differences: Names under which the run found there differs from this one; empty if there is
            none or if it is the same.
    """

    def __init__(self, folder: Path, fingerprint: dict[str, Any]) -> None:
        self.path = folder / JOURNAL_NAME
        # Normalised as reading would: tuples become lists.
        fingerprint = json.loads(json.dumps({"journal": JOURNAL_VERSION, **fingerprint}))
        self._fingerprint = fingerprint
        self.state: dict[str, Any] | None = None
        self.differences: list[str] = []
        found = _read_journal(self.path)
        self.is_found = found is not None
        if found is None:
            return
        theirs = found["fingerprint"]
        names = {**fingerprint, **theirs}
        self.differences = [n for n in names if theirs.get(n) != fingerprint.get(n)]
        if not self.differences:
            self.state = found["state"]

    def save(self, state: dict[str, Any]) -> None:
        """Replaces the state; durable on return. Sync what it counts first."""
        value = {"fingerprint": self._fingerprint, "state": state}
        # ASCII escapes: file names need not be valid UTF-8.
        write_text(self.path, json.dumps(value, allow_nan=False))
        self.state = state


def _read_journal(path: Path) -> dict[str, Any] | None:
    """The journal, or None if there is none or it cannot be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    is_complete = isinstance(value, dict) and {"fingerprint", "state"} <= value.keys()
    return value if is_complete and isinstance(value["fingerprint"], dict) else None


class WorkFolder(Closing):
    """The folder `.tmp-NAME.work` in which the files of one prefix grow, locked by one process.

    A context manager that removes the folder and its contents on exit unless `keep` is set.

    Args:
        prefix: Output prefix; its parent folder is created.

    Attributes:
        path: The folder. It may hold what a killed run left behind.
        keep: Whether the folder outlives the `with` block.
        was_there: Whether the folder existed before, left behind by a killed run.

    Raises:
        OutputError: Another process is writing this prefix, or the folder cannot be created.
    """

    def __init__(self, prefix: str | os.PathLike) -> None:
        self.path = temporary_path(f"{prefix}.work")
        self.keep = False
        self.was_there = self.path.exists()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"{self.path} cannot be created: {error.strerror}. Choose another output prefix."
            ) from None
        fsync_directory(self.path.parent)
        self._lock = _lock(self.path / LOCK_NAME)

    def sweep(self) -> None:
        """Removes everything in the folder except the lock.

        The journal is removed first, durably: without the spools it counts it would be wrong.
        """
        remove(self.path / JOURNAL_NAME)
        fsync_directory(self.path)
        for path in self.path.iterdir():
            if path.name != LOCK_NAME:
                remove(path)

    def close(self) -> None:
        """Releases the lock, and removes the folder unless `keep` is set."""
        if self._lock.closed:
            return
        if not self.keep:
            self.sweep()
            remove(self.path)
        self._lock.close()


def check_output_prefix(prefix: str) -> None:
    """Refuses an output prefix that names a folder: its files would have no name.

    Raises:
        ConfigError: The prefix ends in a folder name.
    """
    if os.path.basename(prefix) in ("", ".", ".."):
        raise ConfigError(
            f"--output-prefix {prefix!r} names a folder, so its files would be hidden ones "
            f"such as .bin. Add a name: {os.path.join(prefix, 'corpus')!r}."
        )


def _lock(path: Path) -> BinaryIO:
    """Locks the file while the stream is open; the system unlocks it if this process dies."""
    stream = open(path, "a+b")  # closed by WorkFolder.close
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_ours = path.exists() and os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except BlockingIOError:
        is_ours = False
    if not is_ours:  # locked, or removed by its owner between the two calls
        stream.seek(0)
        owner = stream.read(4096).decode("utf-8", "replace").strip() or "another process"
        stream.close()
        raise OutputError(
            f"{path.parent} is being written by {owner}. Wait for it to finish, or choose "
            "another output prefix."
        )
    stream.truncate(0)
    stream.write(f"process {os.getpid()} on {os.uname().nodename}".encode())
    stream.flush()
    return stream
