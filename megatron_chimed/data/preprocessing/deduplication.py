"""Finds duplicate documents in input order, with the same result after a resume."""

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from megatron_chimed.data.cleaning.config import CleaningConfig
from megatron_chimed.data.cleaning.duplicates import Deduplicator
from megatron_chimed.data.cleaning.report import CleaningReport
from megatron_chimed.data.preprocessing.journal import Spool

NAME = "signatures"
SIZE = struct.Struct("<i")  # bytes of a signature; -1 for a document without one


class DuplicateFilter:
    """A deduplicator that stores all signatures on disk and replays them when a run resumes.

    Args:
        folder: The work folder.
        config: What counts as a duplicate.
        size: Bytes of stored signatures that the journal counts.
    """

    def __init__(self, folder: Path, config: CleaningConfig, *, size: int = 0) -> None:
        self._deduplicator = Deduplicator(config)
        self._spool = Spool(folder / NAME, size)
        for signature in _read(folder / NAME):
            self._deduplicator.is_duplicate(signature)

    def is_first(self, signatures: Iterable[bytes | None]) -> np.ndarray:
        """Bool `[documents]`: whether no earlier document is a duplicate of it.

        Raises:
            DataError: Deduplication has used up its memory limit.
        """
        flags = []
        for signature in signatures:
            flags.append(signature is None or not self._deduplicator.is_duplicate(signature))
            self._spool.append(SIZE.pack(-1 if signature is None else len(signature)))
            self._spool.append(signature or b"")
        return np.array(flags, bool)

    def sync(self) -> int:
        """Makes the signatures so far durable and returns their size in bytes."""
        self._spool.sync()
        return self._spool.size

    def report(self) -> CleaningReport:
        """What was removed."""
        return self._deduplicator.report()

    def close(self) -> None:
        """Closes the file."""
        self._spool.close()


def _read(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as stream:
        while head := stream.read(SIZE.size):
            size = SIZE.unpack(head)[0]
            if size >= 0:
                yield stream.read(size)
