"""Writes a prefix in the format of `indexed.py`, in bounded memory, in a work folder beside it.

The files grow in the work folder and are renamed to their final names once all are complete, the
index last, so that no reader, ours or Megatron's, can open an incomplete prefix.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_chimed.data.datasets.sidecar import Sidecar, encode_sidecar
from megatron_chimed.data.preprocessing.documents import Documents
from megatron_chimed.data.preprocessing.journal import Spool, WorkFolder
from megatron_chimed.data.preprocessing.output_files import (
    GROUP_SPOOLS,
    append_groups,
    write_index,
    write_rank_file,
)
from megatron_chimed.errors import DataError, existing_output
from megatron_chimed.files import Closing, fsync_directory, fsync_file, publish, sha256_file

SIDECAR, RANKS, QUARANTINE = ".meta.json", ".rank.json", ".quarantine.jsonl"
LENGTHS = "lengths"
# Per stage, in order of publication; the index comes last because readers open a prefix by it.
SUFFIXES = {
    "pretrain": (QUARANTINE, ".bin", SIDECAR, ".idx"),
    "sft": (QUARANTINE, ".bin", ".mask.bin", ".mask.idx", SIDECAR, ".idx"),
    "preference": (
        *(QUARANTINE, ".ranked.bin", ".ranked.mask.bin", ".ranked.mask.idx", RANKS, SIDECAR),
        ".ranked.idx",
    ),
}
STAGES = tuple(SUFFIXES)


def output_path(prefix: str | os.PathLike, suffix: str) -> Path:
    """One file of a prefix."""
    return Path(f"{prefix}{suffix}")


def existing_outputs(prefix: str | os.PathLike) -> list[Path]:
    """Existing files of this prefix, of any stage, except the list of malformed rows."""
    suffixes = dict.fromkeys(s for stage in SUFFIXES.values() for s in reversed(stage))
    paths = [output_path(prefix, suffix) for suffix in suffixes if suffix != QUARANTINE]
    return [path for path in paths if path.exists()]


def refuse_existing(prefix: str | os.PathLike) -> None:
    """Refuses a prefix that has files.

    Raises:
        OutputError: A file of the prefix exists.
    """
    if existing := existing_outputs(prefix):
        raise existing_output("--output-prefix", existing[0])


class IndexedWriter(Closing):
    """Writes documents sequentially; `finalize` publishes the files.

    A context manager: exiting without `finalize` removes what was written, unless the caller owns
    the work folder. Memory does not grow with the number of documents.

    Args:
        prefix: Path without `.bin` and `.idx`; its folder is created.
        dtype: Element type, one of `indexed.DTYPES`.
        overwrite: Replace an existing prefix once the new one is complete.
        stage: One of `STAGES`; decides which files are written.
        folder: The caller's work folder; None creates and removes one.
        state: The return value of `sync` in the run that left the spools in `folder`; None starts
            from scratch.

    Attributes:
        documents: Documents written so far.
        sequences: Sequences written so far.
        tokens: Tokens written so far.
        max_token_id: The largest id so far; -1 without tokens.
        spools: The growing files by name; code that appends to them directly updates the counts.

    Raises:
        OutputError: The prefix exists and `overwrite` is off, or another process is writing it.
        DataError: `state` does not fit the spools.
    """

    def __init__(  # noqa: PLR0913 - the last two serve resumed runs; all are keyword-only
        self,
        prefix: str | os.PathLike,
        dtype: np.typing.DTypeLike,
        *,
        overwrite: bool = False,
        stage: str = "pretrain",
        folder: WorkFolder | None = None,
        state: dict[str, Any] | None = None,
    ) -> None:
        if not overwrite:
            refuse_existing(prefix)
        self.prefix, self.dtype, self.stage = prefix, np.dtype(dtype), stage
        self.documents = self.sequences = self.tokens = 0
        self.max_token_id = -1
        self._own_folder: WorkFolder | None = None
        if folder is None:
            folder = self._own_folder = WorkFolder(prefix)
            folder.sweep()
        self._folder = folder.path
        if state is not None:
            self.documents, self.sequences = state["documents"], state["sequences"]
            self.tokens, self.max_token_id = state["tokens"], state["max_token_id"]
        sizes = {} if state is None else state["spools"]
        self.spools = {
            name: Spool(self._folder / name, sizes.get(name, 0), hashed=name.endswith(".bin"))
            for name in self._spool_names()
        }

    def add_document(
        self, ids: Sequence[int] | np.ndarray, mask: Sequence[int] | np.ndarray | None = None
    ) -> None:
        """Appends a document of one sequence; arguments as for `add_documents`."""
        ids = np.asarray(ids, dtype=None if len(ids) else np.int64)
        self.add_documents(ids, [len(ids)], mask)

    def add_documents(
        self,
        ids: np.ndarray,
        lengths: Sequence[int] | np.ndarray,
        mask: Sequence[int] | np.ndarray | None = None,
    ) -> None:
        """Appends documents of one sequence each, concatenated in `ids`.

        Args:
            ids: Integers `[sum of lengths]`.
            lengths: Tokens of each document.
            mask: 0 or 1 `[sum of lengths]`, for stages with a mask.

        Raises:
            DataError: An id is negative or does not fit the element type.
        """
        mask = None if mask is None else np.asarray(mask, np.uint8)
        self.add(Documents(tokens=ids, lengths=np.asarray(lengths, np.int32), mask=mask))

    def add(self, documents: Documents) -> None:
        """Appends documents.

        Raises:
            DataError: An id is negative or does not fit the element type.
        """
        ids, lengths = documents.tokens, documents.lengths
        assert lengths.sum(dtype=np.int64) == len(ids), "lengths do not add up to the ids"
        assert ids.dtype.kind in "iu", f"token ids of type {ids.dtype}"
        has_mask = self.stage != "pretrain"
        assert (documents.mask is not None) == has_mask, f"{self.stage} and its mask"
        assert (documents.groups is not None) == (self.stage == "preference"), "groups"
        self._check_range(ids, lengths)
        self.spools[self._token_name].append(np.ascontiguousarray(ids, dtype=self.dtype).data)
        self.spools[LENGTHS].append(np.ascontiguousarray(lengths, np.int32).data)
        if documents.mask is not None:
            assert len(documents.mask) == len(ids), "one mask entry per token"
            mask = np.ascontiguousarray(documents.mask, np.uint8)
            self.spools[self._mask_name].append(mask.data)
        if documents.groups is not None:
            append_groups(documents.groups, self.spools)
        self.documents += len(documents)
        self.sequences += len(lengths)
        self.tokens += len(ids)

    def sync(self) -> dict[str, Any]:
        """Makes everything so far durable; returns the state from which a writer resumes."""
        for spool in self.spools.values():
            spool.sync()
        return {
            "documents": self.documents,
            "sequences": self.sequences,
            "tokens": self.tokens,
            "max_token_id": self.max_token_id,
            "spools": {name: spool.size for name, spool in self.spools.items()},
        }

    def finalize(self, describe: Callable[[str, str], Sidecar]) -> Sidecar:
        """Writes the indexes and publishes all files.

        Args:
            describe: Makes the sidecar from the SHA-256 of the token file and of the index; the
                hashes of the other files are filled in.

        Returns:
            The sidecar, as written to `P.meta.json`.
        """
        sidecar = self.seal(describe)
        publish_sealed(self._folder, self.prefix, self.stage)
        self.close()
        return sidecar

    def seal(self, describe: Callable[[str, str], Sidecar]) -> Sidecar:
        """`finalize` without its last step, `publish_sealed`; everything is durable on return."""
        self.sync()
        sha256 = {self._token_name: self.spools[self._token_name].sha256}
        idx_name = SUFFIXES[self.stage][-1]
        documents = self._folder / GROUP_SPOOLS[0] if self.stage == "preference" else None
        lengths = self._folder / LENGTHS
        idx_path = self._folder / idx_name
        sha256[idx_name] = write_index(idx_path, self.dtype, lengths, documents)
        if self.stage != "pretrain":
            sha256[self._mask_name] = self.spools[self._mask_name].sha256
            name = self._mask_name.replace(".bin", ".idx")
            sha256[name] = write_index(self._folder / name, np.dtype("u1"), lengths, documents)
        if self.stage == "preference":
            write_rank_file(self._folder / RANKS, self._folder)
            sha256[RANKS] = sha256_file(self._folder / RANKS)
        sidecar = describe(sha256.pop(self._token_name), sha256.pop(idx_name))
        blocks = {
            name: spool.block_sha256 for name, spool in self.spools.items() if spool.is_hashed
        }
        sidecar = dataclasses.replace(
            sidecar,
            more_sha256=sha256,
            # The only block of a small file has the digest of the file.
            block_sha256={name: found for name, found in blocks.items() if len(found) > 1},
        )
        (self._folder / SIDECAR).write_bytes(encode_sidecar(sidecar))
        (self._folder / QUARANTINE).touch()
        for suffix in SUFFIXES[self.stage]:
            fsync_file(self._folder / suffix)
        fsync_directory(self._folder)
        return sidecar

    def close(self) -> None:
        """Closes the files; without `finalize`, a work folder of its own is removed."""
        for spool in self.spools.values():
            spool.close()
        if self._own_folder is not None:
            self._own_folder.close()

    @property
    def _token_name(self) -> str:
        return SUFFIXES[self.stage][1]

    @property
    def _mask_name(self) -> str:
        return SUFFIXES[self.stage][2]

    def _spool_names(self) -> Iterator[str]:
        yield self._token_name
        yield LENGTHS
        if self.stage != "pretrain":
            yield self._mask_name
        if self.stage == "preference":
            yield from GROUP_SPOOLS

    def _check_range(self, ids: np.ndarray, lengths: np.ndarray) -> None:
        if not len(ids):
            return
        assert self.dtype.kind in "iu", f"{self.dtype.name} cannot hold token ids"
        largest_id = np.iinfo(self.dtype.str).max
        smallest, largest = int(ids.min()), int(ids.max())
        if smallest < 0 or largest > largest_id:
            wrong = int(np.argmax((ids < 0) | (ids > largest_id)))
            document = int(np.searchsorted(np.cumsum(lengths), wrong, side="right"))
            raise DataError(
                f"document {self.documents + document}: token id {int(ids[wrong])} does not fit "
                f"{self.dtype.name} (0 to {largest_id}). Was another tokenizer used?"
            )
        self.max_token_id = max(self.max_token_id, largest)


def publish_sealed(folder: Path, prefix: str | os.PathLike, stage: str) -> None:
    """Renames sealed files to their final names; can be repeated after an interruption.

    An old prefix of that name, of any stage, loses its index first, so that nobody opens a mix of
    old and new files. An empty list of malformed rows is not published.
    """
    suffixes = SUFFIXES[stage]
    if (folder / suffixes[-1]).exists():  # otherwise all files are published already
        kept = {output_path(prefix, suffix) for suffix in suffixes[:-1]}
        for path in existing_outputs(prefix):
            if path not in kept:
                path.unlink()
    for suffix in suffixes:
        final = output_path(prefix, suffix)
        if suffix == QUARANTINE and (folder / suffix).exists() and _is_empty(folder / suffix):
            final.unlink(missing_ok=True)
        elif (folder / suffix).exists():
            publish(folder / suffix, final)


def _is_empty(path: Path) -> bool:
    return path.stat().st_size == 0
