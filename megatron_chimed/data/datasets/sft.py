"""Conversations packed by best fit; only the assistant's answers are learned.

Sample `i` depends on the files, the document range, the sequence length, the seed and `i` alone.
"""

import numpy as np

from megatron_chimed.data.datasets.indexed import IndexedDataset
from megatron_chimed.data.datasets.packing import (
    Overlong,
    PackOrder,
    check_supervision,
    read_pack,
    refuse_overlong,
)
from megatron_chimed.errors import DataError


class SFTDataset:
    """An endless sequence of packs of whole conversations.

    Args:
        indexed: The token files; a document is a conversation of one sequence.
        targets: uint8 `[tokens]`, 1 where a token is to be predicted.
        documents: First document, and the first after the range.
        seq_length: Tokens per sample.
        seed: Seed of the order.
        shuffle: Off for validation: the same packs in every epoch.
        overlong: What happens to longer conversations: `error`; `drop`; or `truncate`, which drops
            the turns after the last answer that fits. If not even the first answer fits, it is cut
            and has no end token; if the prompt alone does not fit, the conversation is dropped.

    Attributes:
        samples_per_epoch: Number of samples, equal in all epochs.
        notes: How many longer conversations were dropped or shortened, as one line.

    Raises:
        DataError: There are longer conversations and `overlong` is `error`; no conversation is
            left; there is no supervised token; or a document has several sequences.
    """

    def __init__(
        self,
        indexed: IndexedDataset,
        targets: np.ndarray,
        *,
        documents: tuple[int, int],
        seq_length: int,
        seed: int,
        shuffle: bool = True,
        overlong: Overlong = "error",
    ) -> None:
        if len(indexed) != indexed.num_documents:
            raise DataError(
                f"{indexed.prefix}: {indexed.num_documents} documents of {len(indexed)} sequences, "
                "but a conversation is one sequence. Preprocess again with --stage sft."
            )
        self.indexed, self.targets, self.documents = indexed, targets, documents
        self.seq_length, self.shuffle = seq_length, shuffle
        self.notes: tuple[str, ...] = ()
        check_supervision(indexed, targets, documents)
        lengths = indexed.document_lengths(*documents)  # int32 [documents]
        if lengths.max() > seq_length:
            if overlong == "error":
                refuse_overlong(indexed, lengths, documents[0], seq_length, "drop or truncate")
            lengths = self._shorten(lengths, cut=overlong == "truncate")
        self._kept = np.flatnonzero(lengths).astype(np.int32)  # of the documents in the range
        self._lengths = lengths[self._kept]
        if not len(self._kept):
            raise DataError(
                f"{indexed.prefix}: no conversation fits seq_length {seq_length}. Increase it."
            )
        self._order = PackOrder(self._lengths, seq_length, seed=seed, shuffle=shuffle)
        self.samples_per_epoch = self._order.packs_per_epoch

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Sample `index >= 0`: the arrays of `native.gather_pack`."""
        items = self._order.items(index)
        return read_pack(
            self.indexed,
            self.targets,
            sequences=self._documents(items),
            lengths=self._lengths[items],
            size=self.seq_length,
        )

    def locate(self, index: int) -> str:
        """Names a sample's documents, for messages."""
        return self.indexed.name_documents(self._documents(self._order.items(index)))

    def _documents(self, items: np.ndarray) -> np.ndarray:
        return self._kept[items].astype(np.int64) + self.documents[0]

    def _shorten(self, lengths: np.ndarray, *, cut: bool) -> np.ndarray:
        """Lengths that fit, 0 for dropped ones; records in `notes` what was changed."""
        lengths = lengths.copy()
        overlong = np.flatnonzero(lengths > self.seq_length)
        begins = self.indexed.sequence_starts(overlong + self.documents[0])
        shortened = endless = 0
        for document, begin in zip(overlong, begins, strict=True):
            kept = self._fitting_turns(int(begin)) if cut else 0
            shortened += kept > 0
            endless += kept == self.seq_length and self._ends_within_an_answer(int(begin))
            lengths[document] = kept
        note = (
            f"{self.indexed.prefix}: {len(overlong)} of {len(lengths)} conversations are longer "
            f"than {self.seq_length} tokens: {len(overlong) - shortened} dropped"
        )
        if cut:
            note += f", {shortened} shortened, {endless} of these within an answer, without its end"
        self.notes = (note,)
        return lengths

    def _fitting_turns(self, begin: int) -> int:
        """Tokens up to the end of the last answer that fits; 0 if no answer starts in time."""
        # The next token tells whether an answer ends with the last token that fits.
        is_target = self.targets[begin : begin + self.seq_length + 1] != 0
        ends = np.flatnonzero(is_target[:-1] & ~is_target[1:])
        if len(ends):
            return int(ends[-1]) + 1
        return self.seq_length if is_target[1:-1].any() else 0

    def _ends_within_an_answer(self, begin: int) -> bool:
        last = begin + self.seq_length - 1
        return bool(self.targets[last] and self.targets[last + 1])
