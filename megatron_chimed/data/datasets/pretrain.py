"""An endless sequence of fixed-length samples over concatenated documents.

Sample `i` depends on the files, the document range, the sequence length, the seed and `i` alone,
not on ranks, batches or what was read before. Epoch `e` shuffles the documents, concatenates them,
cuts the stream into samples of `seq_length + 1` tokens that share one token with their neighbour,
drops the rest, and shuffles the samples.
"""

import functools
from dataclasses import dataclass

import numpy as np

from megatron_chimed.data.datasets.indexed import IndexedDataset, changed_files
from megatron_chimed.data.datasets.native import gather, mark_documents, permutation, sample_index
from megatron_chimed.errors import DataError

DOCUMENT_STREAM, SAMPLE_STREAM = 0, 1  # independent random streams for the two shuffles of an epoch
CACHED_EPOCHS = 2  # a global batch may span two; each costs 4 bytes per document + sample


@dataclass(frozen=True, kw_only=True)
class AtEod:
    """What is reset after the end of a document within a sample."""

    eod_id: int
    """The id that ends a document."""

    reset_position_ids: bool = False
    """Positions restart at 0."""

    reset_attention: bool = False
    """Attention does not cross the end: samples have `segment_ids`."""

    mask_loss: bool = False
    """There is no loss on the first token after the end."""

    @property
    def is_needed(self) -> bool:
        """Whether any reset is on."""
        return self.reset_position_ids or self.reset_attention or self.mask_loss


@dataclass(frozen=True)
class _SampleEpoch:
    documents: np.ndarray  # int32 [documents], in shuffled order
    rows: np.ndarray  # int64 [samples + 1, 2], from native.sample_index
    samples: np.ndarray  # int32 [samples], in shuffled order


class PretrainDataset:
    """An endless sequence of samples from a range of documents.

    Args:
        indexed: The token files.
        documents: First document, and the first after the range.
        seq_length: Tokens per sample.
        seed: Seed of both shuffles.
        shuffle: Off for validation: the same samples in file order in every epoch.
        at_eod: What is reset within a sample; None: nothing.

    Attributes:
        samples_per_epoch: Number of samples, equal in all epochs.

    Raises:
        DataError: The range has fewer than `seq_length + 1` tokens, or elements are not integers.
    """

    def __init__(
        self,
        indexed: IndexedDataset,
        *,
        documents: tuple[int, int],
        seq_length: int,
        seed: int,
        shuffle: bool = True,
        at_eod: AtEod | None = None,
    ) -> None:
        self.indexed = indexed
        self.documents = documents
        self.seq_length = seq_length
        self.seed = seed
        self.shuffle = shuffle
        self.at_eod = at_eod if at_eod is not None and at_eod.is_needed else None
        if indexed.dtype.kind not in "iu":
            raise DataError(f"{indexed.idx_path}: {indexed.dtype.name} elements are not token ids.")
        self._lengths = indexed.document_lengths(*documents)  # int32 [documents]
        tokens = int(self._lengths.sum(dtype=np.int64))
        self.samples_per_epoch = max(tokens - 1, 0) // seq_length
        if self.samples_per_epoch == 0:
            raise DataError(
                f"{indexed.prefix}: documents {documents[0]} to {documents[1]} hold {tokens} "
                f"tokens, but one sample of seq_length {seq_length} needs {seq_length + 1}. Add "
                "text or reduce seq_length."
            )
        # Shared by all samples unless something is reset within them.
        self._positions = np.arange(seq_length, dtype=np.int64)
        self._ones = np.ones(seq_length, np.float32)
        for shared in (self._positions, self._ones):
            shared.flags.writeable = False
        self._epoch = functools.lru_cache(maxsize=CACHED_EPOCHS)(self._build_epoch)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Sample `index >= 0`; do not write to its arrays.

        Returns:
            `tokens`, `labels`, `position_ids` int64 `[s]`, `loss_mask` float32 `[s]`, and
            `segment_ids` int32 `[s]` where attention is reset.

        Raises:
            DataError: The files were changed since they were opened.
        """
        window = np.empty(self.seq_length + 1, np.int64)
        try:
            _, starts, lengths = self._slices(index)
            gather(self.indexed.tokens, starts, lengths, ids=window)
        except IndexError as error:
            raise changed_files(self.indexed.prefix, error) from None
        sample = {
            "tokens": window[:-1],
            "labels": window[1:],
            "loss_mask": self._ones,
            "position_ids": self._positions,
        }
        return sample if self.at_eod is None else sample | self._marks(window[:-1], self.at_eod)

    def locate(self, index: int) -> str:
        """Names a sample's documents, for messages."""
        return self.indexed.name_documents(self._slices(index)[0])

    def _marks(self, ids: np.ndarray, at_eod: AtEod) -> dict[str, np.ndarray]:
        """The arrays of a sample that depend on the ends of its documents."""
        marks = {}
        if at_eod.reset_position_ids:
            marks["position_ids"] = np.empty(len(ids), np.int64)
        if at_eod.mask_loss:
            marks["loss_mask"] = np.empty(len(ids), np.float32)
        if at_eod.reset_attention:
            marks["segment_ids"] = np.empty(len(ids), np.int32)
        mark_documents(
            ids,
            at_eod.eod_id,
            positions=marks.get("position_ids"),
            loss_mask=marks.get("loss_mask"),
            segments=marks.get("segment_ids"),
        )
        return marks

    def _slices(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Document, first token in the file and number of tokens of each slice of a sample."""
        number, within = divmod(index, self.samples_per_epoch)
        epoch = self._epoch(number if self.shuffle else 0)
        sample = epoch.samples[within]
        (first, offset), (last, end) = epoch.rows[sample : sample + 2].tolist()
        local = epoch.documents[first : last + 1]
        lengths = self._lengths[local].astype(np.int64)
        lengths[-1] = end + 1
        lengths[0] -= offset
        if not lengths.all():
            local, lengths = local[lengths > 0], lengths[lengths > 0]
        documents = local.astype(np.int64) + self.documents[0]
        starts = self.indexed.document_starts(documents)
        starts[0] += offset  # never an empty document: rows start at a token
        return documents, starts, lengths

    def _build_epoch(self, epoch: int) -> _SampleEpoch:
        documents = self._order(len(self._lengths), epoch, DOCUMENT_STREAM)
        rows = sample_index(
            self._lengths, documents, seq_length=self.seq_length, samples=self.samples_per_epoch
        )
        samples = self._order(self.samples_per_epoch, epoch, SAMPLE_STREAM)
        return _SampleEpoch(documents=documents, rows=rows, samples=samples)

    def _order(self, size: int, epoch: int, stream: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(size, dtype=np.int64)
        return permutation(size, seed=self.seed, epoch=epoch, stream=stream)
