"""Ranked answers to one prompt, packed in whole groups by best fit, for reward models and DPO.

All candidates of a group are in one sample, each as its own segment, so that an objective compares
them within one forward pass. Values of a candidate are stored at its last token, where a reward
model reads its score, so that all arrays have the shape `[s]`.
"""

import itertools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_chimed.data.datasets.indexed import IndexedDataset
from megatron_chimed.data.datasets.packing import (
    Overlong,
    PackOrder,
    check_supervision,
    read_pack,
    refuse_overlong,
)
from megatron_chimed.errors import ConfigError, DataError

RANK_FILE_VERSIONS = (1, 2)  # 2 has `labels`


@dataclass(frozen=True, kw_only=True)
class Rankings:
    """The content of `P.rank.json`, with one entry per sequence unless stated otherwise."""

    ranks: np.ndarray
    """int32 `[sequences]`: 0 is best, equal ranks of a document are a tie. In a document of one
    judged answer, 0 is a good one and 1 a bad one."""

    margins: np.ndarray
    """float32 `[sequences]`: 0 if the source gives none."""

    prompt_lengths: np.ndarray
    """int32 `[documents]`: tokens that all candidates of a document start with."""

    is_unpaired: np.ndarray
    """bool `[documents]`: one answer, judged good or bad, as KTO learns from."""


def read_rankings(path: Path, indexed: IndexedDataset) -> Rankings:
    """Reads `P.rank.json` and checks it against the index.

    Raises:
        ConfigError: The file does not exist.
        DataError: The file is malformed, or was made for other token files.
    """
    if not path.is_file():
        raise ConfigError(
            f"{path} does not exist: ranked answers need it beside their tokens. Copy it to that "
            "folder, or preprocess again."
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if value["format_version"] not in RANK_FILE_VERSIONS:
            raise ValueError(f"format_version is {value['format_version']!r}")
        sizes = np.diff(indexed.document_indices)
        groups = value["ranks"]
        margins = value["margins"] or itertools.repeat(None, len(groups))
        filled = [m or [0.0] * len(g) for m, g in zip(margins, groups, strict=True)]
        for name, lists in (("ranks", groups), ("margins", filled)):
            if [len(entry) for entry in lists] != sizes.tolist():
                raise ValueError(f"{name} do not fit the candidates in {indexed.idx_path.name}")
        rankings = Rankings(
            ranks=np.array([*itertools.chain.from_iterable(groups)], np.int32),
            margins=np.array([*itertools.chain.from_iterable(filled)], np.float32),
            prompt_lengths=np.array(value["prompt_lengths"], np.int32),
            is_unpaired=_unpaired(value.get("labels"), groups),
        )
        _check_rankings(rankings, indexed, sizes)
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise DataError(f"{path} is damaged: {error}. Preprocess again.") from None
    return rankings


def _unpaired(labels: Any, groups: list[list[int]]) -> np.ndarray:
    """Bool `[documents]`: which groups have a label."""
    if labels is None:
        return np.zeros(len(groups), bool)
    for label, ranks in zip(labels, groups, strict=True):
        if label is not None and ranks != [0 if label is True else 1]:
            raise ValueError(f"label {label!r} of a group with ranks {ranks}")
    return np.array([label is not None for label in labels], bool)


def require_pairs(rankings: Rankings, prefix: str | os.PathLike) -> None:
    """Refuses groups of one judged answer, which have nothing to compare.

    Raises:
        ConfigError: There is one.
    """
    if rankings.is_unpaired.any():
        count, total = int(rankings.is_unpaired.sum()), len(rankings.is_unpaired)
        raise ConfigError(
            f"{prefix}: {count} of {total} groups hold one answer with a label (unpaired, as for "
            "KTO), but reward models and DPO compare answers. Use data of pairs or rankings, or "
            "learn the good answers: preprocess with --stage sft --keep-labels good."
        )


def _check_rankings(rankings: Rankings, indexed: IndexedDataset, sizes: np.ndarray) -> None:
    if len(rankings.prompt_lengths) != len(sizes):
        raise ValueError(f"{len(rankings.prompt_lengths)} prompt lengths of {len(sizes)} groups")
    if (rankings.ranks < 0).any() or not np.isfinite(rankings.margins).all():
        raise ValueError("a rank is negative or a margin is not finite")
    answers = indexed.lengths - np.repeat(rankings.prompt_lengths, sizes)
    if (rankings.prompt_lengths < 0).any() or (answers <= 0).any():
        raise ValueError("a prompt is as long as one of its candidates")


class PreferenceDataset:
    """An endless sequence of packs of whole groups; a pair is a group of two.

    Args:
        indexed: The token files; a document is a group, a sequence a candidate with its prompt.
        targets: uint8 `[tokens]`, 1 where a token belongs to an answer.
        rankings: Ranks, margins and prompt lengths of the candidates.
        documents: First group, and the first after the range.
        seq_length: Tokens per sample.
        seed: Seed of the order.
        shuffle: Off for validation: the same packs in every epoch.
        overlong: What happens to groups that do not fit a sample: `error` or `drop`. Not
            `truncate`: a truncated answer would be compared with whole ones.

    Attributes:
        samples_per_epoch: Number of samples, equal in all epochs.
        notes: How many groups were dropped, as one line.
        log_probs: float64 `[sequences]`, log probability of each candidate's answer under the
            reference model of DPO; None until it is set.

    Raises:
        ConfigError: `overlong` is `truncate`, or a group is a single judged answer.
        DataError: There are longer groups and `overlong` is `error`; no group is left; or there is
            no supervised token.
    """

    def __init__(  # noqa: PLR0913 - all but three are keyword-only
        self,
        indexed: IndexedDataset,
        targets: np.ndarray,
        rankings: Rankings,
        *,
        documents: tuple[int, int],
        seq_length: int,
        seed: int,
        shuffle: bool = True,
        overlong: Overlong = "error",
    ) -> None:
        if overlong == "truncate":
            raise ConfigError(
                f"data.overlong is truncate, but {indexed.prefix} holds ranked answers, which "
                "are compared whole. Set --data.overlong drop."
            )
        self.indexed, self.targets, self.rankings = indexed, targets, rankings
        self.documents, self.seq_length, self.shuffle = documents, seq_length, shuffle
        self.notes: tuple[str, ...] = ()
        self.log_probs: np.ndarray | None = None
        require_pairs(rankings, indexed.prefix)
        check_supervision(indexed, targets, documents)
        lengths = indexed.document_lengths(*documents)  # int32 [documents]
        fits = lengths <= seq_length
        if not fits.all():
            if overlong == "error":
                refuse_overlong(indexed, lengths, documents[0], seq_length, "drop")
            note = f"{len(fits) - int(fits.sum())} of {len(fits)} groups are longer than"
            self.notes = (f"{indexed.prefix}: {note} {seq_length} tokens: dropped",)
        self._kept = np.flatnonzero(fits & (lengths > 0)).astype(np.int32)
        if not len(self._kept):
            raise DataError(
                f"{indexed.prefix}: no group fits seq_length {seq_length}. Increase it."
            )
        kept_lengths = lengths[self._kept]
        self._order = PackOrder(kept_lengths, seq_length, seed=seed, shuffle=shuffle)
        self.samples_per_epoch = self._order.packs_per_epoch

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Sample `index >= 0`.

        Returns:
            The arrays of `native.gather_pack`, where a segment is a candidate, and `[s]`:
            `group_ids` int32, index of the group within the sample, -1 in padding; and at each
            candidate's last token `ranks` int32 (elsewhere -1), `margins` float32, `prompt_lengths`
            int32 and, if set, `reference_log_probs` float64 (elsewhere 0).
        """
        groups, sequences = self._groups(index), self.sequences(index)
        bounds = self.indexed.document_indices
        sizes = bounds[groups + 1] - bounds[groups]
        lengths = self.indexed.lengths[sequences].astype(np.int64)
        sample = read_pack(
            self.indexed, self.targets, sequences=sequences, lengths=lengths, size=self.seq_length
        )
        ends = np.cumsum(lengths) - 1
        owners = np.repeat(np.arange(len(groups)), sizes)  # group of each candidate
        group_ids = np.full(self.seq_length, -1, np.int32)
        group_ids[: ends[-1] + 1] = np.repeat(owners, lengths)
        prompts = self.rankings.prompt_lengths[groups][owners]
        if self.log_probs is not None:
            sample["reference_log_probs"] = self._at(ends, self.log_probs[sequences])
        return sample | {
            "group_ids": group_ids,
            "ranks": self._at(ends, self.rankings.ranks[sequences], elsewhere=-1),
            "margins": self._at(ends, self.rankings.margins[sequences]),
            "prompt_lengths": self._at(ends, prompts),
        }

    def sequences(self, index: int) -> np.ndarray:
        """int64: sequence indices of a sample's candidates, in order."""
        groups, bounds = self._groups(index), self.indexed.document_indices
        return np.concatenate([np.arange(int(bounds[g]), int(bounds[g + 1])) for g in groups])

    def locate(self, index: int) -> str:
        """Names a sample's groups, for messages."""
        return self.indexed.name_documents(self._groups(index))

    def _groups(self, index: int) -> np.ndarray:
        return self._kept[self._order.items(index)].astype(np.int64) + self.documents[0]

    def _at(self, places: np.ndarray, values: np.ndarray, *, elsewhere: int = 0) -> np.ndarray:
        array = np.full(self.seq_length, elsewhere, values.dtype)
        array[places] = values
        return array
