"""Continued pre-training: next-token loss over joined documents."""

from collections.abc import Mapping

import torch

from megatron_chimed.engine import Batch
from megatron_chimed.model import TokenLoss


class PretrainStage:
    """Cross-entropy of every token whose mask is 1, counted by token."""

    metric_names: tuple[str, ...] = ()

    def __init__(self, token_loss: TokenLoss) -> None:
        self.token_loss = token_loss

    def forward(self, batch: Batch, model: torch.nn.Module) -> torch.Tensor:
        """Runs one chunk; its output is hidden states, or logits [s, b, v/t] on the last."""
        return model(batch["tokens"], batch["position_ids"])

    def loss(
        self, output: torch.Tensor, batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor, Mapping[str, torch.Tensor]]:
        """(sum of token losses, number of tokens, nothing more)."""
        mask = batch["loss_mask"]  # [b, s]
        losses = self.token_loss(output, batch["labels"])  # [b, s]
        return (losses * mask).sum(), mask.sum().to(torch.int32), {}
