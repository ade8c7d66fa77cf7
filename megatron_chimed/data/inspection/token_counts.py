"""Counts from one pass over all tokens: ids, ends of documents, supervision, per source."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_chimed.data.datasets.prefix import Prefix
from megatron_chimed.data.inspection.token_blocks import DocumentRange, TokenBlock, token_blocks


@dataclass(kw_only=True)
class RangeCounts:
    """Counts of one range of documents."""

    documents: int = 0
    """Documents."""

    sequences: int = 0
    """Sequences: the candidates of rankings, otherwise as many as documents."""

    tokens: int = 0
    """Tokens."""

    supervised_tokens: int = 0
    """Tokens whose mask is not 0."""

    end_tokens: int = 0
    """Supervised tokens with the end id; 0 if that id is unknown."""


@dataclass(kw_only=True)
class FaultCount:
    """Faults of one kind."""

    count: int = 0
    """Number of faults."""

    first: str = ""
    """Location of the first one."""

    def add(
        self, is_wrong: np.ndarray, block: TokenBlock, *, of: str, value: np.ndarray | None = None
    ):
        """Counts the true entries of an array over a block's tokens, sequences or documents.

        Args:
            is_wrong: bool, one entry for each.
            block: The block they are in.
            of: `token`, `sequence` or `document`.
            value: Values to show for the first one, of the same shape.
        """
        count = int(np.count_nonzero(is_wrong))
        if count and not self.count:
            place = int(np.argmax(is_wrong))
            self.first = _place(block, of, place)
            if value is not None:
                self.first += f", which is {int(value[place])}"
        self.count += count


@dataclass(kw_only=True)
class TokenCounts:
    """The result of `count_tokens`."""

    ranges: list[RangeCounts]
    """One per range of documents, in order."""

    smallest_id: int | None = None
    """None without tokens."""

    largest_id: int = -1
    """-1 without tokens."""

    outside: FaultCount
    """Ids outside the vocabulary, if it is known."""

    ends: int = 0
    """Tokens with the end id."""

    unended: FaultCount
    """Documents whose last token has another id."""

    not_binary: FaultCount
    """Mask entries other than 0 and 1."""

    unsupervised: FaultCount
    """Sequences from which nothing is learned: no token after the first is supervised."""


def count_tokens(
    prefix: Prefix, ranges: Sequence[DocumentRange], *, vocab_size: int | None, end_id: int | None
) -> TokenCounts:
    """Reads all tokens once.

    Args:
        prefix: A prefix of integer tokens.
        ranges: Ranges to count separately, such as those of `document_ranges`.
        vocab_size: Ids must be below it; None: ids must not be negative.
        end_id: The id that ends documents in pretraining and answers elsewhere, if known.
    """
    counts = TokenCounts(
        ranges=[RangeCounts() for _ in ranges],
        outside=FaultCount(),
        unended=FaultCount(),
        not_binary=FaultCount(),
        unsupervised=FaultCount(),
    )
    limit = 2**63 if vocab_size is None else vocab_size
    for block in token_blocks(prefix, ranges):
        in_range = counts.ranges[block.range_index]
        in_range.documents += len(block.documents) - 1
        in_range.sequences += len(block.lengths)
        in_range.tokens += len(block.tokens)
        _count_ids(counts, block, limit)
        if end_id is not None:
            _count_ends(counts, block, end_id)
        if block.targets is not None:
            _count_targets(counts, block, block.targets, end_id)
    return counts


def _count_ids(counts: TokenCounts, block: TokenBlock, limit: int) -> None:
    if not len(block.tokens):
        return
    smallest, largest = int(block.tokens.min()), int(block.tokens.max())
    lowest = counts.smallest_id
    counts.smallest_id = smallest if lowest is None else min(lowest, smallest)
    counts.largest_id = max(counts.largest_id, largest)
    if smallest < 0 or largest >= limit:
        is_outside = (block.tokens < 0) | (block.tokens >= limit)
        counts.outside.add(is_outside, block, of="token", value=block.tokens)


def _count_ends(counts: TokenCounts, block: TokenBlock, end_id: int) -> None:
    counts.ends += int(np.count_nonzero(block.tokens == end_id))
    bounds = block.bounds[block.documents]  # first token of each document
    is_unended = np.ones(len(bounds) - 1, bool)
    holds = bounds[1:] > bounds[:-1]
    is_unended[holds] = block.tokens[bounds[1:][holds] - 1] != end_id
    counts.unended.add(is_unended, block, of="document")


def _count_targets(
    counts: TokenCounts, block: TokenBlock, targets: np.ndarray, end_id: int | None
) -> None:
    in_range = counts.ranges[block.range_index]
    is_target = targets != 0
    in_range.supervised_tokens += int(np.count_nonzero(is_target))
    if end_id is not None:
        in_range.end_tokens += int(np.count_nonzero(is_target & (block.tokens == end_id)))
    if len(targets) and targets.max() > 1:
        counts.not_binary.add(targets > 1, block, of="token", value=targets)
    learned = np.concatenate(([0], np.cumsum(block.predicted != 0, dtype=np.int32)))
    bounds = block.bounds
    counts.unsupervised.add(learned[bounds[1:]] == learned[bounds[:-1]], block, of="sequence")


def _place(block: TokenBlock, of: str, place: int) -> str:
    if of == "document":
        return f"document {block.first + place}"
    if of == "token":
        sequence = int(np.searchsorted(block.bounds, place, side="right")) - 1
        where = f"token {place - int(block.bounds[sequence])} of "
    else:
        sequence, where = place, ""
    document = int(np.searchsorted(block.documents, sequence, side="right")) - 1
    if len(block.documents) - 1 == len(block.lengths):  # every document is one sequence
        return f"{where}document {block.first + document}"
    number = sequence - int(block.documents[document])
    return f"{where}candidate {number} of document {block.first + document}"
