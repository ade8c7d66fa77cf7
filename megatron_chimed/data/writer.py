"""Writes a prefix in the format of `indexed.py`, in bounded memory, under temporary names.

The index gets its final name last, so that no reader, ours or Megatron's, can open a prefix whose
token file or sidecar is not complete.
"""

import fcntl
import hashlib
import os
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from megatron_chimed.data.indexed import CHECK_ENTRIES, CODES, HEADER, MAGIC, VERSION, file_paths
from megatron_chimed.data.sidecar import Sidecar, sidecar_to_json
from megatron_chimed.errors import DataError, OutputError
from megatron_chimed.files import publish, remove, sha256_file, temporary_path, write_json


class IndexedWriter:
    """Writes documents one after another; `finalize` makes the files appear.

    A context manager: leaving it without `finalize` removes what was written. Memory: 4 bytes per
    sequence.

    Args:
        prefix: Path without `.bin` and `.idx`; its folder is made.
        dtype: Element type, one of `indexed.DTYPES`.
        overwrite: Replace an existing prefix, once the new one is complete.

    Raises:
        OutputError: The prefix exists and `overwrite` is off, or another process is writing it.
    """

    def __init__(
        self, prefix: str | os.PathLike, dtype: np.typing.DTypeLike, *, overwrite: bool = False
    ) -> None:
        self.dtype = np.dtype(dtype)
        self.bin_path, self.idx_path, self.sidecar_path = file_paths(prefix)
        if not overwrite and (existing := self._existing()):
            raise OutputError(
                f"{existing[0]} exists. Choose another output prefix or pass --overwrite."
            )
        self.bin_path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = _open_locked(temporary_path(self.bin_path))
        self._digest = hashlib.sha256()
        self._lengths = array("i")
        self.tokens = 0
        self.max_token_id = -1

    def __enter__(self) -> "IndexedWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.abort()

    @property
    def documents(self) -> int:
        """Documents written so far; each is one sequence."""
        return len(self._lengths)

    def add_document(self, ids: Sequence[int] | np.ndarray) -> None:
        """Appends a document of one sequence.

        Raises:
            DataError: An id is negative or does not fit the element type.
        """
        ids = np.asarray(ids, dtype=None if len(ids) else np.int64)
        self.add_documents(ids, [len(ids)])

    def add_documents(self, ids: np.ndarray, lengths: Sequence[int] | np.ndarray) -> None:
        """Appends documents of one sequence each, given one after another in `ids`.

        Args:
            ids: Integers `[sum of lengths]`.
            lengths: Tokens of each document.

        Raises:
            DataError: An id is negative or does not fit the element type.
        """
        lengths = np.asarray(lengths, dtype=np.int32)
        assert lengths.sum(dtype=np.int64) == len(ids), "lengths do not add up to the ids"
        assert ids.dtype.kind in "iu", f"token ids of type {ids.dtype}"
        self._check_range(ids, lengths)
        raw = np.ascontiguousarray(ids, dtype=self.dtype).data
        self._stream.write(raw)
        self._digest.update(raw)
        self._lengths.frombytes(lengths.tobytes())
        self.tokens += len(ids)

    def finalize(self, describe: Callable[[str, str], Sidecar]) -> Sidecar:
        """Syncs the files and gives them their final names.

        Args:
            describe: Makes the sidecar from the SHA-256 of the token file and of the index.

        Returns:
            The sidecar, now `P.meta.json`.
        """
        self._stream.flush()
        temporary_idx = temporary_path(self.idx_path)
        self._write_index(temporary_idx)
        for path in self._existing():
            if path != self.bin_path:  # replaced by the rename below
                path.unlink()
        publish(temporary_path(self.bin_path), self.bin_path)
        sidecar = describe(self._digest.hexdigest(), sha256_file(temporary_idx))
        write_json(self.sidecar_path, sidecar_to_json(sidecar))
        publish(temporary_idx, self.idx_path)
        self._stream.close()
        return sidecar

    def abort(self) -> None:
        """Removes what is not final yet; does nothing after `finalize`."""
        if self._stream.closed:
            return
        remove(temporary_path(self.idx_path))
        remove(temporary_path(self.bin_path))
        self._stream.close()

    def _existing(self) -> list[Path]:
        return [p for p in (self.idx_path, self.sidecar_path, self.bin_path) if p.exists()]

    def _check_range(self, ids: np.ndarray, lengths: np.ndarray) -> None:
        if not len(ids):
            return
        info = np.iinfo(self.dtype)
        smallest, largest = int(ids.min()), int(ids.max())
        if smallest < 0 or largest > info.max:
            wrong = int(np.argmax((ids < 0) | (ids > info.max)))
            document = int(np.searchsorted(np.cumsum(lengths), wrong, side="right"))
            raise DataError(
                f"document {self.documents + document}: token id {int(ids[wrong])} does not fit "
                f"{self.dtype.name} (0 to {info.max}). Was another tokenizer used?"
            )
        self.max_token_id = max(self.max_token_id, largest)

    def _write_index(self, path: Path) -> None:
        header = np.zeros(1, HEADER)
        header["magic"] = np.void(MAGIC)
        header["version"] = VERSION
        header["dtype_code"] = CODES[self.dtype]
        header["sequences"] = self.documents
        header["document_entries"] = self.documents + 1
        lengths = np.frombuffer(self._lengths, np.int32)
        with open(path, "wb") as stream:
            stream.write(header.tobytes())
            stream.write(lengths.data)
            position = 0
            for start in range(0, len(lengths), CHECK_ENTRIES):
                block = lengths[start : start + CHECK_ENTRIES].astype(np.int64)
                ends = position + np.cumsum(block * self.dtype.itemsize)
                stream.write(np.concatenate(([position], ends[:-1])).data)
                position = int(ends[-1])
            for start in range(0, self.documents + 1, CHECK_ENTRIES):
                end = min(start + CHECK_ENTRIES, self.documents + 1)
                stream.write(np.arange(start, end, dtype=np.int64).data)


def _open_locked(path: Path) -> BinaryIO:
    """Opens a temporary file that no other process is writing; one left by a crash is emptied."""
    stream = open(path, "ab")  # closed by finalize or abort
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_ours = path.exists() and os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except BlockingIOError:
        is_ours = False
    if not is_ours:  # locked, or renamed by its writer between our two calls
        stream.close()
        raise OutputError(
            f"{path} is being written by another process. Wait for it, or choose another output "
            "prefix."
        )
    stream.truncate(0)
    return stream
