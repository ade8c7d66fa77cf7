"""A batch of documents as arrays: the output of the stage encoder and the input of the writer."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NOTES = np.dtype(
    [("end_tokens", "i4"), ("dropped_turns", "i4"), ("tags_removed", "i4"), ("is_truncated", "?")]
)
"""What is counted per document besides its tokens."""


@dataclass(frozen=True, kw_only=True)
class RankingGroups:
    """How sequences form documents of several candidates each, and how these are ranked."""

    candidates: np.ndarray
    """int32 `[documents]`: sequences of each document."""

    prompt_lengths: np.ndarray
    """int32 `[documents]`: tokens that all candidates of a document start with."""

    ranks: np.ndarray
    """int32 `[sequences]`: 0 is best, equal ranks are a tie."""

    margins: np.ndarray
    """float64 `[sequences]`; NaN throughout a document without margins."""


@dataclass(frozen=True, kw_only=True)
class Documents:
    """Consecutive documents; each is one sequence unless `groups` is set."""

    tokens: np.ndarray
    """Integers `[sum of lengths]`."""

    lengths: np.ndarray
    """int32 `[sequences]`, tokens of each."""

    mask: np.ndarray | None = None
    """uint8 `[sum of lengths]`, 1 where a token is a supervised target."""

    groups: RankingGroups | None = None
    """Sequences per document and their ranks; None: one sequence per document."""

    notes: np.ndarray | None = None
    """`NOTES` `[documents]`; the writer does not need them."""

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.lengths if self.groups is None else self.groups.candidates)

    def keep(self, is_kept: np.ndarray) -> "Documents":
        """The documents where `is_kept` (bool `[documents]`) is true."""
        if is_kept.all():
            return self
        groups, sequences = self.groups, is_kept
        if groups is not None:
            sequences = np.repeat(is_kept, groups.candidates)
            groups = RankingGroups(
                candidates=groups.candidates[is_kept],
                prompt_lengths=groups.prompt_lengths[is_kept],
                ranks=groups.ranks[sequences],
                margins=groups.margins[sequences],
            )
        tokens = np.repeat(sequences, self.lengths)
        return Documents(
            tokens=self.tokens[tokens],
            lengths=self.lengths[sequences],
            mask=None if self.mask is None else self.mask[tokens],
            groups=groups,
            notes=None if self.notes is None else self.notes[is_kept],
        )


def concatenate(arrays: Sequence[np.ndarray], dtype: np.dtype) -> np.ndarray:
    """All elements as one array; works for no arrays too."""
    return np.concatenate(arrays).astype(dtype) if arrays else np.empty(0, dtype)
