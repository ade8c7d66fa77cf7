"""Next-token loss: pretraining over joined documents, and SFT over packed conversations.

The data decide which tokens count (`loss_mask`) and which tokens each attends to (`segment_ids`).
"""

from collections.abc import Mapping, Sequence

import torch

from megatron_chimed.engine import Batch, Totals
from megatron_chimed.model import TokenLoss


class NextTokenObjective:
    """Cross-entropy of every token whose mask is 1, averaged over tokens.

    Args:
        token_loss: The loss of each token.
        sources: Names of the data's sources, indexed by `source` of a sample; their losses are
            reported separately.
    """

    def __init__(self, token_loss: TokenLoss, sources: Sequence[str] = ()) -> None:
        self.token_loss = token_loss
        self.sources = tuple(sources)
        self.metric_names = tuple(
            f"{what}/{name}" for what in ("loss_sum", "tokens") for name in self.sources
        )

    def forward(self, batch: Batch, model: torch.nn.Module) -> torch.Tensor:
        """Runs one chunk: hidden states, on the last logits [s, b, v/t] or token losses [b, s]."""
        return model(
            batch["tokens"],
            batch["position_ids"],
            segment_ids=batch.get("segment_ids"),
            labels=batch["labels"],
        )

    def loss(
        self, output: torch.Tensor, batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor, Mapping[str, torch.Tensor]]:
        """(sum of token losses, number of tokens, the same two of each source)."""
        mask = batch["loss_mask"]  # [b, s]
        is_loss = self.token_loss.is_chunked
        losses = output if is_loss else self.token_loss(output, batch["labels"])
        losses = losses * mask  # [b, s]
        metrics = self._by_source(losses.detach(), batch) if self.sources else {}
        return losses.sum(), mask.sum().to(torch.int32), metrics

    def averages(self, totals: Totals) -> Mapping[str, float]:
        """Empty: the loss is the only metric."""
        return {}

    def by_source(self, totals: Totals) -> Mapping[str, tuple[float, float]]:
        """(sum of token losses, number of tokens) of each source that has tokens in the totals."""
        return {
            name: (totals.metrics[f"loss_sum/{name}"], totals.metrics[f"tokens/{name}"])
            for name in self.sources
            if totals.metrics[f"tokens/{name}"]
        }

    def details(self, totals: Totals) -> Mapping[str, list]:
        """Empty."""
        return {}

    def _by_source(self, losses: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        rows = (losses.sum(dim=1), batch["loss_mask"].sum(dim=1))  # [b] each
        sums = torch.zeros(2, len(self.sources), dtype=torch.float64, device=losses.device)
        if "source" in batch:  # absent where the data have a single source
            for total, row in zip(sums, rows, strict=True):
                total.index_add_(0, batch["source"], row.to(torch.float64))
        return dict(zip(self.metric_names, sums.flatten().unbind(), strict=True))
