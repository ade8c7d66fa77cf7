"""Direct preference optimisation: a policy learns from ranked answers without a reward model."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from megatron_chimed.config.dpo import DPOConfig
from megatron_chimed.engine import Batch, Totals
from megatron_chimed.model import TokenLoss
from megatron_chimed.training.objectives.pairs import Candidates, find_candidates

SUMS = ("pairs", "correct", "reward_better", "reward_worse", "log_ratio", "tokens")


class AnswerLogProbs:
    """Log-probability of each candidate's answer, the forward pass included.

    Args:
        token_loss: The loss of each token.
    """

    def __init__(self, token_loss: TokenLoss) -> None:
        self.token_loss = token_loss

    def forward(self, batch: Batch, model: torch.nn.Module) -> torch.Tensor:
        """Runs one chunk: hidden states, on the last logits [s, b, v/t] or token losses [b, s]."""
        return model(
            batch["tokens"],
            batch["position_ids"],
            segment_ids=batch.get("segment_ids"),
            labels=batch["labels"],
        )

    def sums(self, output: torch.Tensor, batch: Batch, found: Candidates) -> torch.Tensor:
        """Natural logarithms [c], fp64: answers of a thousand tokens differ in small digits."""
        is_loss = self.token_loss.is_chunked
        losses = output if is_loss else self.token_loss(output, batch["labels"])  # [b, s]
        return found.sum_over_tokens(-losses.double() * batch["loss_mask"])


class DPOStage:
    """-log sigmoid(beta (log ratio of the better - log ratio of the worse)), a group counting once.

    A log ratio is that of the policy's and the reference's probability of the whole answer; the
    reference's comes with the batch (`reference`).

    Source: Rafailov et al. (arXiv 2305.18290), eq. 7; with label smoothing, Mitchell, A note on DPO
    with noisy preferences (2023), eq. 3; IPO, Azar et al. (arXiv 2310.12036), eq. 17.
    """

    metric_names = SUMS

    def __init__(self, token_loss: TokenLoss, config: DPOConfig) -> None:
        self.config, self.log_probs = config, AnswerLogProbs(token_loss)

    def forward(self, batch: Batch, model: torch.nn.Module) -> torch.Tensor:
        """Runs one chunk."""
        return self.log_probs.forward(batch, model)

    def loss(
        self, output: torch.Tensor, batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor, Mapping[str, torch.Tensor]]:
        """(sum over groups, number of groups, sums over pairs and tokens)."""
        found = find_candidates(batch)
        reference = batch["reference_log_probs"][found.rows, found.ends]  # [c]
        ratios = self.log_probs.sums(output, batch, found) - reference
        leads = ratios[found.better] - ratios[found.worse]  # [p]
        losses = (self._losses(leads) * found.weights).sum().float()
        return losses, found.num_groups, self._metrics(ratios.detach(), batch, found)

    def averages(self, totals: Totals) -> Mapping[str, float]:
        """What the implicit rewards say of the pairs, and how far the policy has gone.

        `log_ratio` is the mean of log(policy / reference) over the answers' tokens, 0 at the start:
        a stand-in for the KL divergence, which would take samples of the policy.
        """
        pairs, correct, better, worse, log_ratio, tokens = (totals.metrics[name] for name in SUMS)
        if not pairs:
            return {}
        return {
            "pairs": int(pairs),
            "accuracy": correct / pairs,
            "margin": (better - worse) / pairs,
            "reward_better": better / pairs,
            "reward_worse": worse / pairs,
            "log_ratio": log_ratio / tokens,
        }

    def by_source(self, totals: Totals) -> Mapping[str, tuple[float, float]]:
        """Nothing: groups of all sources are compared alike."""
        return {}

    def details(self, totals: Totals) -> Mapping[str, list]:
        """Nothing."""
        return {}

    def _losses(self, leads: torch.Tensor) -> torch.Tensor:
        beta, smoothing = self.config.beta, self.config.label_smoothing
        if self.config.loss == "ipo":
            return (leads - 1 / (2 * beta)) ** 2
        right, wrong = F.logsigmoid(beta * leads), F.logsigmoid(-beta * leads)
        return -(1 - smoothing) * right - smoothing * wrong

    def _metrics(
        self, ratios: torch.Tensor, batch: Batch, found: Candidates
    ) -> dict[str, torch.Tensor]:
        rewards = self.config.beta * ratios
        better, worse = rewards[found.better], rewards[found.worse]
        correct = (better > worse).double()
        values = (
            torch.ones_like(correct).sum(),
            correct.sum(),
            better.sum(),
            worse.sum(),
            ratios.sum(),
            found.sum_over_tokens(batch["loss_mask"].double()).sum(),
        )
        return dict(zip(SUMS, values, strict=True))
