"""Fixed-length samples over documents that are joined one after another, without end.

Sample `i` depends on the files, the document range, the sequence length, the seed and `i` alone:
not on ranks, batches or what was read before. Epoch `e` shuffles the documents, joins them, cuts
the stream into samples of `seq_length + 1` tokens that share one token with their neighbour, drops
the rest, and shuffles the samples.
"""

import functools
from dataclasses import dataclass

import numpy as np

from megatron_chimed.data.indexed import IndexedDataset
from megatron_chimed.data.native import permutation, sample_index
from megatron_chimed.errors import DataError

DOCUMENT_STREAM, SAMPLE_STREAM = 0, 1  # the two shuffles of an epoch draw apart
CACHED_EPOCHS = 2  # a global batch may straddle a border; each costs 4 bytes per document + sample
NAMED_DOCUMENTS = 4


@dataclass(frozen=True)
class _Epoch:
    documents: np.ndarray  # int32 [documents], in their order
    rows: np.ndarray  # int64 [samples + 1, 2], from native.sample_index
    samples: np.ndarray  # int32 [samples], in their order


class PretrainDataset:
    """An endless sequence of samples from a range of documents.

    Args:
        indexed: The token files.
        documents: First document, and the first that is not used any more.
        seq_length: Tokens per sample.
        seed: Of both shuffles.
        shuffle: Off for validation: the same samples in file order in every epoch.

    Attributes:
        samples_per_epoch: The same in every epoch.

    Raises:
        DataError: The range holds fewer than `seq_length + 1` tokens, or no integers.
    """

    def __init__(
        self,
        indexed: IndexedDataset,
        *,
        documents: tuple[int, int],
        seq_length: int,
        seed: int,
        shuffle: bool = True,
    ) -> None:
        self.indexed = indexed
        self.documents = documents
        self.seq_length = seq_length
        self.seed = seed
        self.shuffle = shuffle
        if indexed.dtype.kind not in "iu":
            raise DataError(f"{indexed.idx_path}: {indexed.dtype.name} elements are no token ids.")
        self._lengths = indexed.document_lengths(*documents)  # int32 [documents]
        tokens = int(self._lengths.sum(dtype=np.int64))
        self.samples_per_epoch = max(tokens - 1, 0) // seq_length
        if self.samples_per_epoch == 0:
            raise DataError(
                f"{indexed.prefix}: documents {documents[0]} to {documents[1]} hold {tokens} "
                f"tokens, but one sample of seq_length {seq_length} takes {seq_length + 1}. Add "
                "text or shorten seq_length."
            )
        self._epoch = functools.lru_cache(maxsize=CACHED_EPOCHS)(self._build_epoch)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Sample `index >= 0`.

        Returns:
            `tokens`, `labels`, `position_ids` int64 `[s]` and `loss_mask` float32 `[s]`.
        """
        window = np.empty(self.seq_length + 1, np.int64)
        filled = 0
        for _, start, length in self._slices(index):
            window[filled : filled + length] = self.indexed.tokens[start : start + length]
            filled += length
        assert filled == len(window), f"sample {index} has {filled} tokens"
        return {
            "tokens": window[:-1],
            "labels": window[1:],
            "loss_mask": np.ones(self.seq_length, np.float32),
            "position_ids": np.arange(self.seq_length, dtype=np.int64),
        }

    def locate(self, index: int) -> str:
        """Names a sample's documents, for messages."""
        documents = [str(document) for document, _, _ in self._slices(index)]
        more = ", ..." if len(documents) > NAMED_DOCUMENTS else ""
        return f"{self.indexed.prefix}, document {', '.join(documents[:NAMED_DOCUMENTS])}{more}"

    def _slices(self, index: int) -> list[tuple[int, int, int]]:
        """(document, first token in the file, tokens) of each document in a sample."""
        number, within = divmod(index, self.samples_per_epoch)
        epoch = self._epoch(number if self.shuffle else 0)
        sample = epoch.samples[within]
        (first, offset), (last, end) = epoch.rows[sample], epoch.rows[sample + 1]
        slices = []
        for place in range(first, last + 1):
            local = int(epoch.documents[place])
            skipped = int(offset) if place == first else 0
            stop = int(end) + 1 if place == last else int(self._lengths[local])
            if stop > skipped:
                document = self.documents[0] + local
                start = self.indexed.document_start(document) + skipped
                slices.append((document, start, stop - skipped))
        return slices

    def _build_epoch(self, epoch: int) -> _Epoch:
        documents = self._order(len(self._lengths), epoch, DOCUMENT_STREAM)
        rows = sample_index(
            self._lengths, documents, seq_length=self.seq_length, samples=self.samples_per_epoch
        )
        samples = self._order(self.samples_per_epoch, epoch, SAMPLE_STREAM)
        return _Epoch(documents=documents, rows=rows, samples=samples)

    def _order(self, size: int, epoch: int, stream: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(size, dtype=np.int64)
        return permutation(size, seed=self.seed, epoch=epoch, stream=stream)
