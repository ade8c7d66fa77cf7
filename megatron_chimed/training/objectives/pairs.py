"""The candidate pairs of a micro-batch, for the reward and the DPO objective."""

from dataclasses import dataclass

import torch

from megatron_chimed.engine import Batch


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """The c candidates of a micro-batch, row by row, and their p ordered pairs.

    All pairs of different rank within a group are compared; ties are left out. A pair weighs
    1 / (pairs of its group), so that each group counts once, however many candidates it has.

    Source: Ouyang et al. (arXiv 2203.02155), eq. 1.
    """

    rows: torch.Tensor
    """int64 [c], row of the micro-batch."""
    ends: torch.Tensor
    """int64 [c], position of the last token in its row."""
    better: torch.Tensor
    """int64 [p], index of the preferred candidate of each pair."""
    worse: torch.Tensor
    """int64 [p], index of the other one."""
    weights: torch.Tensor
    """fp32 [p]."""
    margins: torch.Tensor
    """fp32 [p], desired margin of the preferred one: 0 where the source gives none, or where its
    numbers contradict its ranks."""
    num_groups: torch.Tensor
    """int32 [], groups that have a pair."""
    of_token: torch.Tensor
    """int64 [b, s], number of candidates that end before each token: the token's candidate."""

    def sum_over_tokens(self, values: torch.Tensor) -> torch.Tensor:
        """[b, s], 0 outside the candidates -> the sum over each candidate [c]."""
        sums = values.new_zeros(len(self.rows) + 1)  # one more: padding at the end
        return sums.index_add(0, self.of_token.flatten(), values.flatten())[:-1]


def find_candidates(batch: Batch) -> Candidates:
    """Reads a micro-batch of `data.preference.PreferenceDataset`, [b, s] arrays.

    Synchronizes with the device: the number of candidates determines shapes.
    """
    ranks = batch["ranks"]  # [b, s], -1 but at the last tokens
    is_end = ranks >= 0
    rows, ends = torch.nonzero(is_end, as_tuple=True)
    found, margins = ranks[rows, ends], batch["margins"][rows, ends]
    # Groups are numbered from 0 in each row, and a row has fewer than s.
    groups = rows * ranks.shape[1] + batch["group_ids"][rows, ends]
    is_pair = (groups[:, None] == groups) & (found[:, None] < found)
    better, worse = torch.nonzero(is_pair, as_tuple=True)
    sizes = torch.bincount(groups[better], minlength=ranks.numel())  # pairs of each group
    return Candidates(
        rows=rows,
        ends=ends,
        better=better,
        worse=worse,
        weights=1.0 / sizes[groups[better]].float(),
        margins=(margins[better] - margins[worse]).clamp(min=0.0),
        num_groups=(sizes > 0).sum().to(torch.int32),
        of_token=(is_end.flatten().cumsum(0) - is_end.flatten().long()).view_as(ranks),
    )
