"""Reads all tokens of a prefix in blocks, each of documents of one source."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from megatron_chimed.data.datasets.indexed import IndexedDataset
from megatron_chimed.data.datasets.prefix import Prefix

BLOCK_TOKENS = 1 << 22  # about 100 MB with everything computed from them
BLOCK_DOCUMENTS = 1 << 18
ALL = "all"


@dataclass(frozen=True, kw_only=True)
class DocumentRange:
    """Consecutive documents of one source."""

    name: str
    """The source file, or `all`."""

    documents: tuple[int, int]
    """First document, and the first after the range."""


@dataclass(frozen=True, kw_only=True)
class TokenBlock:
    """Whole documents of one range."""

    range_index: int
    """Index of the range."""

    first: int
    """Index of the first document."""

    first_sequence: int
    """Index of its first sequence."""

    start: int
    """Index of its first token in the token file."""

    lengths: np.ndarray
    """int64 `[sequences]`, tokens of each."""

    documents: np.ndarray
    """int64 `[documents + 1]`, first sequence of each document within the block, then the total."""

    tokens: np.ndarray
    """`[sum of lengths]`, as the file has them."""

    targets: np.ndarray | None
    """uint8 `[sum of lengths]`, 1 where a token is to be predicted; None in pretraining."""

    @property
    def bounds(self) -> np.ndarray:
        """int64 `[sequences + 1]`: first token of each sequence in the block, then the total."""
        return np.concatenate(([0], np.cumsum(self.lengths)))

    @property
    def predicted(self) -> np.ndarray:
        """Copy of `targets` without the first token of each sequence, which is never predicted."""
        assert self.targets is not None, "pretraining data have no targets"
        predicted = self.targets.copy()
        predicted[self.bounds[:-1][self.lengths > 0]] = 0
        return predicted


def document_ranges(indexed: IndexedDataset) -> list[DocumentRange]:
    """One range per source if the sidecar lists consecutive ones, otherwise one with everything."""
    whole = (0, indexed.num_documents)
    sources = indexed.sidecar.sources if indexed.sidecar is not None else ()
    if not sources or misplaced_source([s.documents for s in sources], whole[1]) is not None:
        return [DocumentRange(name=ALL, documents=whole)]
    return [DocumentRange(name=source.file, documents=source.documents) for source in sources]


def misplaced_source(ranges: Sequence[tuple[int, int]], documents: int) -> int | None:
    """The first range that does not start where the last ended; `len(ranges)`: wrong end."""
    border = 0
    for number, (first, last) in enumerate(ranges):
        if not first == border <= last <= documents:
            return number
        border = last
    return None if border == documents else len(ranges)


def token_blocks(prefix: Prefix, ranges: Sequence[DocumentRange]) -> Iterator[TokenBlock]:
    """All documents of the ranges, in order."""
    indexed = prefix.indexed
    for index, part in enumerate(ranges):
        for first, last in _cut(indexed, *part.documents):
            sequences = indexed.document_indices[first : last + 1].astype(np.int64)
            lengths = indexed.lengths[sequences[0] : sequences[-1]].astype(np.int64)
            start = indexed.document_start(first)
            tokens = slice(start, start + int(lengths.sum()))
            yield TokenBlock(
                range_index=index,
                first=first,
                first_sequence=int(sequences[0]),
                start=start,
                lengths=lengths,
                documents=sequences - sequences[0],
                tokens=indexed.tokens[tokens],
                targets=None if prefix.targets is None else prefix.targets[tokens],
            )


def _cut(indexed: IndexedDataset, first: int, last: int) -> Iterator[tuple[int, int]]:
    """Ranges of documents of about `BLOCK_TOKENS` tokens, or one longer document."""
    for begin in range(first, last, BLOCK_DOCUMENTS):
        end = min(begin + BLOCK_DOCUMENTS, last)
        ends = np.cumsum(indexed.document_lengths(begin, end), dtype=np.int64)
        borders = np.flatnonzero(np.diff(ends // BLOCK_TOKENS)) + 1
        cuts = [begin, *(borders + begin).tolist(), end]
        yield from zip(cuts[:-1], cuts[1:], strict=True)
