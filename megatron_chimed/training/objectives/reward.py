"""Reward model: scores answers, trained on which of two answers people prefer.

All candidates of a group are in one packed sample, so one forward pass compares them.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from megatron_chimed.engine import Batch, Totals
from megatron_chimed.training.objectives.pairs import find_candidates

SUMS = ("pairs", "correct", "score_better", "score_worse")
CALIBRATION_BINS = 10
CALIBRATION_SUMS = ("pairs", "confidence", "correct")


class RewardObjective:
    """-log sigmoid(score of the better - score of the worse - margin), averaged over groups.

    A candidate's score is that of its last token. sigmoid(difference) is the probability with which
    the model prefers the better one, so its calibration can be measured: pairs are binned by the
    confidence sigmoid(|difference|), from 0.5 to 1.

    Source: Ouyang et al. (arXiv 2203.02155), eq. 1, over all pairs of a group; Touvron et al.,
    Llama 2 (arXiv 2307.09288), eq. 2, for the margin.
    """

    def __init__(self) -> None:
        self.metric_names = (
            *SUMS,
            *(f"bin_{what}/{n}" for what in CALIBRATION_SUMS for n in range(CALIBRATION_BINS)),
        )

    def forward(self, batch: Batch, model: torch.nn.Module) -> torch.Tensor:
        """Runs one chunk; its output is hidden states, or scores [s, b] fp32 on the last."""
        return model(batch["tokens"], batch["position_ids"], segment_ids=batch.get("segment_ids"))

    def loss(
        self, output: torch.Tensor, batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor, Mapping[str, torch.Tensor]]:
        """(sum over groups, number of groups, sums over pairs)."""
        found = find_candidates(batch)
        scores = output[found.ends, found.rows]  # [c]
        better, worse = scores[found.better], scores[found.worse]  # [p]
        losses = -F.logsigmoid(better - worse - found.margins) * found.weights
        return losses.sum(), found.num_groups, self._metrics(better.detach(), worse.detach())

    def averages(self, totals: Totals) -> Mapping[str, float]:
        """Accuracy, mean margin of the better candidates, and the mean scores."""
        pairs, correct, better, worse = (totals.metrics[name] for name in SUMS)
        if not pairs:
            return {}
        return {
            "pairs": int(pairs),
            "accuracy": correct / pairs,
            "margin": (better - worse) / pairs,
            "score_better": better / pairs,
            "score_worse": worse / pairs,
        }

    def by_source(self, totals: Totals) -> Mapping[str, tuple[float, float]]:
        """Empty: preference data have no losses by source."""
        return {}

    def details(self, totals: Totals) -> Mapping[str, list[list[float]]]:
        """`calibration`: for each confidence bin its number of pairs, and sums over them."""
        return {
            "calibration": [
                [totals.metrics[f"bin_{what}/{n}"] for what in CALIBRATION_SUMS]
                for n in range(CALIBRATION_BINS)
            ]
        }

    def _metrics(self, better: torch.Tensor, worse: torch.Tensor) -> dict[str, torch.Tensor]:
        better, worse = better.double(), worse.double()
        correct = (better > worse).double()
        sums = [torch.ones_like(correct), correct, better, worse]
        confidence = (better - worse).abs().sigmoid()
        indices = ((confidence - 0.5) * 2 * CALIBRATION_BINS).long().clamp(max=CALIBRATION_BINS - 1)
        bins = better.new_zeros(len(CALIBRATION_SUMS), CALIBRATION_BINS).index_add_(
            1, indices, torch.stack([torch.ones_like(correct), confidence, correct])
        )
        values = [*(values.sum() for values in sums), *bins.flatten().unbind()]
        return dict(zip(self.metric_names, values, strict=True))
