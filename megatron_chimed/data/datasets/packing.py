"""Packs sequences of any length into samples of one length, and reads these.

Samples carry `segment_ids`; attention is responsible for isolating the segments.
"""

import functools
from dataclasses import dataclass
from typing import Literal, NoReturn

import numpy as np

from megatron_chimed.data.datasets.indexed import IndexedDataset, changed_files
from megatron_chimed.data.datasets.native import gather_pack, pack, permutation
from megatron_chimed.errors import DataError

Overlong = Literal["error", "truncate", "drop"]
SEQUENCE_STREAM, PACK_STREAM = 0, 1  # independent random streams for the two shuffles of an epoch
CACHED_EPOCHS = 2  # a global batch may span two; each costs 4 bytes per sequence and pack
CHECK_DOCUMENTS = 1 << 14


@dataclass(frozen=True)
class _PackEpoch:
    items: np.ndarray  # int32 [items], pack by pack
    starts: np.ndarray  # int64 [packs + 1], start of each pack in `items`
    packs: np.ndarray  # int32 [packs], in shuffled order


class PackOrder:
    """Packs items by best fit, anew in every epoch, and shuffles the packs.

    Best fit does not distinguish items of equal length: shuffling them before packing changes the
    company of an item in every epoch, but not the number of packs. Without the second shuffle,
    packs of long items would come first and packs of short ones last.

    Args:
        lengths: int32 `[items]`, each in [0, capacity].
        capacity: Tokens of a pack.
        seed: Seed of both shuffles.
        shuffle: Off for validation: the same packs in every epoch.

    Attributes:
        packs_per_epoch: Number of packs, equal in all epochs.
    """

    def __init__(
        self, lengths: np.ndarray, capacity: int, *, seed: int, shuffle: bool = True
    ) -> None:
        self._lengths, self._capacity, self._seed, self._shuffle = lengths, capacity, seed, shuffle
        self._epoch = functools.lru_cache(maxsize=CACHED_EPOCHS)(self._build_epoch)
        self.packs_per_epoch = len(self._epoch(0).packs)

    def items(self, index: int) -> np.ndarray:
        """int32: indices of the items of pack `index >= 0`, in order."""
        number, within = divmod(index, self.packs_per_epoch)
        epoch = self._epoch(number if self._shuffle else 0)
        chosen = epoch.packs[within]
        return epoch.items[epoch.starts[chosen] : epoch.starts[chosen + 1]]

    def _build_epoch(self, epoch: int) -> _PackEpoch:
        if not self._shuffle:
            items, starts = pack(self._lengths, self._capacity)
            return _PackEpoch(items=items, starts=starts, packs=np.arange(len(starts) - 1))
        order = self._permutation(len(self._lengths), epoch, SEQUENCE_STREAM)
        places, starts = pack(self._lengths[order], self._capacity)
        packs = self._permutation(len(starts) - 1, epoch, PACK_STREAM)
        return _PackEpoch(items=order[places], starts=starts, packs=packs)

    def _permutation(self, size: int, epoch: int, stream: int) -> np.ndarray:
        return permutation(size, seed=self._seed, epoch=epoch, stream=stream)


def read_pack(
    indexed: IndexedDataset,
    targets: np.ndarray,
    *,
    sequences: np.ndarray,
    lengths: np.ndarray,
    size: int,
) -> dict[str, np.ndarray]:
    """The first `lengths` tokens of sequences as one sample; see `native.gather_pack`.

    Raises:
        DataError: The files were changed since they were opened.
    """
    try:
        starts = indexed.sequence_starts(sequences)
        return gather_pack(indexed.tokens, targets, starts, lengths.astype(np.int64), size=size)
    except IndexError as error:
        raise changed_files(indexed.prefix, error) from None


def check_supervision(
    indexed: IndexedDataset, targets: np.ndarray, documents: tuple[int, int]
) -> None:
    """Refuses documents without any supervised token; stops reading at the first one.

    The first token of a sequence is never predicted, so a target there does not count.

    Args:
        indexed: The token files.
        targets: uint8 `[tokens]`.
        documents: First document, and the first after the range.

    Raises:
        DataError: No token is supervised.
    """
    first, last = documents
    for start in range(first, last, CHECK_DOCUMENTS):
        bounds = indexed.document_indices[[start, min(start + CHECK_DOCUMENTS, last)]]
        lengths = indexed.lengths[bounds[0] : bounds[1]].astype(np.int64)
        if not lengths.any():
            continue
        begins = indexed.sequence_starts(np.arange(bounds[0], bounds[1])[lengths > 0])
        end = begins[0] + lengths.sum()
        is_target = targets[begins[0] : end] != 0
        is_target[begins - begins[0]] = False
        if is_target.any():
            return
    raise DataError(
        f"{indexed.prefix}: none of the {last - first} documents from {first} on has a supervised "
        "token, so nothing can be learned from them. Inspect them with tools/inspect_dataset.py "
        "view, preprocess them again, or remove them."
    )


def refuse_overlong(
    indexed: IndexedDataset, lengths: np.ndarray, first: int, seq_length: int, choices: str
) -> NoReturn:
    """Raises the error for documents that do not fit a sample.

    Args:
        indexed: The token files.
        lengths: int32 `[documents]`; a group counts with all its candidates.
        first: Index of the first of these documents.
        seq_length: Tokens of a sample.
        choices: Values of `overlong` that drop them.

    Raises:
        DataError: Always.
    """
    longest = int(lengths.argmax())
    raise DataError(
        f"{indexed.prefix}: {int((lengths > seq_length).sum())} of {len(lengths)} documents are "
        f"longer than seq_length {seq_length}; the longest, document {first + longest}, has "
        f"{int(lengths[longest])} tokens. Set --data.seq_length {int(lengths[longest])}, "
        f"preprocess with --seq-length {seq_length}, or drop them: --data.overlong {choices}."
    )
