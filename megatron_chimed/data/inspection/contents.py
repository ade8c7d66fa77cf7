"""What one reading of all tokens tells: ids, ends of documents, supervision, source by source."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_chimed.data.datasets.prefix import Prefix
from megatron_chimed.data.inspection.scan import Block, Part, scan


@dataclass(kw_only=True)
class PartCounts:
    """What a part holds."""

    documents: int = 0
    """Documents."""

    sequences: int = 0
    """Sequences: the candidates of rankings, else as many as there are documents."""

    tokens: int = 0
    """Tokens."""

    supervised_tokens: int = 0
    """Tokens whose mask is not 0."""

    end_tokens: int = 0
    """Supervised tokens with the end id; 0 where that is unknown."""


@dataclass(kw_only=True)
class Fault:
    """Things of one kind that are wrong."""

    count: int = 0
    """How many."""

    first: str = ""
    """Where the first one is."""

    def add(self, is_wrong: np.ndarray, block: Block, *, of: str, value: np.ndarray | None = None):
        """Counts the true entries of an array over a block's tokens, sequences or documents.

        Args:
            is_wrong: bool, one entry for each.
            block: Where they are.
            of: `token`, `sequence` or `document`.
            value: What to tell of the first one, of the same shape.
        """
        count = int(np.count_nonzero(is_wrong))
        if count and not self.count:
            place = int(np.argmax(is_wrong))
            self.first = _place(block, of, place)
            if value is not None:
                self.first += f", which is {int(value[place])}"
        self.count += count


@dataclass(kw_only=True)
class Contents:
    """The result of `read_contents`."""

    parts: list[PartCounts]
    """One per part, in their order."""

    smallest_id: int | None = None
    """None without tokens."""

    largest_id: int = -1
    """-1 without tokens."""

    outside: Fault
    """Ids outside the vocabulary, as far as one is known."""

    ends: int = 0
    """Tokens with the end id."""

    endless: Fault
    """Documents whose last token is another one."""

    not_binary: Fault
    """Mask entries other than 0 and 1."""

    unsupervised: Fault
    """Sequences of which nothing is learned: no token but perhaps the first is supervised."""


def read_contents(
    prefix: Prefix, parts: Sequence[Part], *, vocab_size: int | None, end_id: int | None
) -> Contents:
    """Reads everything once.

    Args:
        prefix: Integers, not floating-point numbers.
        parts: What to count apart, such as `scan.parts_of`.
        vocab_size: Ids must be below it; None: must not be negative.
        end_id: The id that ends a document in pretraining and an answer elsewhere, if it is known.
    """
    contents = Contents(
        parts=[PartCounts() for _ in parts],
        outside=Fault(),
        endless=Fault(),
        not_binary=Fault(),
        unsupervised=Fault(),
    )
    limit = 2**63 if vocab_size is None else vocab_size
    for block in scan(prefix, parts):
        counts = contents.parts[block.part]
        counts.documents += len(block.documents) - 1
        counts.sequences += len(block.lengths)
        counts.tokens += len(block.tokens)
        _read_ids(contents, block, limit)
        if end_id is not None:
            _read_ends(contents, block, end_id)
        if block.targets is not None:
            _read_targets(contents, block, end_id)
    return contents


def _read_ids(contents: Contents, block: Block, limit: int) -> None:
    if not len(block.tokens):
        return
    smallest, largest = int(block.tokens.min()), int(block.tokens.max())
    lowest = contents.smallest_id
    contents.smallest_id = smallest if lowest is None else min(lowest, smallest)
    contents.largest_id = max(contents.largest_id, largest)
    if smallest < 0 or largest >= limit:
        is_outside = (block.tokens < 0) | (block.tokens >= limit)
        contents.outside.add(is_outside, block, of="token", value=block.tokens)


def _read_ends(contents: Contents, block: Block, end_id: int) -> None:
    contents.ends += int(np.count_nonzero(block.tokens == end_id))
    bounds = block.bounds[block.documents]  # first token of each document
    is_endless = np.ones(len(bounds) - 1, bool)
    holds = bounds[1:] > bounds[:-1]
    is_endless[holds] = block.tokens[bounds[1:][holds] - 1] != end_id
    contents.endless.add(is_endless, block, of="document")


def _read_targets(contents: Contents, block: Block, end_id: int | None) -> None:
    counts = contents.parts[block.part]
    is_target = block.targets != 0
    counts.supervised_tokens += int(np.count_nonzero(is_target))
    if end_id is not None:
        counts.end_tokens += int(np.count_nonzero(is_target & (block.tokens == end_id)))
    if len(block.targets) and block.targets.max() > 1:
        contents.not_binary.add(block.targets > 1, block, of="token", value=block.targets)
    learned = np.concatenate(([0], np.cumsum(block.predicted != 0, dtype=np.int32)))
    bounds = block.bounds
    contents.unsupervised.add(learned[bounds[1:]] == learned[bounds[:-1]], block, of="sequence")


def _place(block: Block, of: str, place: int) -> str:
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
