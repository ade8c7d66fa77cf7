"""Which documents were there before: decided in order, and again the same after a kill."""

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from megatron_chimed.data.cleaning.config import CleaningConfig
from megatron_chimed.data.cleaning.duplicates import Deduplicator
from megatron_chimed.data.cleaning.report import CleaningReport
from megatron_chimed.data.preprocessing.spool import Spool

NAME = "signatures"
SIZE = struct.Struct("<i")  # bytes of a signature; -1 for a document that has none


class DuplicateFilter:
    """A deduplicator whose past is on disk: it is told all of it again when a run goes on.

    Args:
        folder: The work folder.
        config: What counts as a duplicate.
        size: Bytes of the signatures that a killed run left and that count.
    """

    def __init__(self, folder: Path, config: CleaningConfig, *, size: int = 0) -> None:
        self._deduplicator = Deduplicator(config)
        self._spool = Spool(folder / NAME, size)
        for signature in _read(folder / NAME):
            self._deduplicator.is_duplicate(signature)

    def first_ones(self, signatures: Iterable[bytes | None]) -> np.ndarray:
        """Bool `[documents]`: whether nothing like it came before.

        Raises:
            DataError: The memory that deduplication may take is used up.
        """
        is_first = []
        for signature in signatures:
            is_first.append(signature is None or not self._deduplicator.is_duplicate(signature))
            self._spool.append(SIZE.pack(-1 if signature is None else len(signature)))
            self._spool.append(signature or b"")
        return np.array(is_first, bool)

    def sync(self) -> int:
        """Makes the signatures so far durable; returns their bytes."""
        self._spool.sync()
        return self._spool.size

    def report(self) -> CleaningReport:
        """What was removed."""
        return self._deduplicator.report()

    def close(self) -> None:
        """Ends the writing."""
        self._spool.close()


def _read(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as stream:
        while head := stream.read(SIZE.size):
            size = SIZE.unpack(head)[0]
            if size >= 0:
                yield stream.read(size)
