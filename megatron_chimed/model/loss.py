"""Next-token loss over a vocabulary that is split over ranks."""

import torch
import torch.distributed as dist

from megatron_chimed.kernels import AUTO, Kernels, VocabShard
from megatron_chimed.model.config import ModelConfig


class TokenLoss:
    """Cross-entropy of each token, in fp32.

    Args:
        config: Gives the true size of the vocabulary.
        group: Tensor-parallel group, over which the vocabulary is split.
        kernels: The ops, bound to a back end.
    """

    def __init__(
        self, config: ModelConfig, *, group: dist.ProcessGroup, kernels: Kernels = AUTO
    ) -> None:
        share = config.padded_vocab_size(group.size()) // group.size()
        self.shard = VocabShard(size=config.vocab_size, start=group.rank() * share, group=group)
        self.kernels = kernels

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Logits [s, b, padded v/t], labels [b, s] int64 -> losses [b, s].

        The memory of the logits holds their gradient after the backward pass.

        Raises:
            KernelError: A label is outside the vocabulary.
        """
        losses = self.kernels.vocab_parallel_cross_entropy(
            logits.flatten(0, 1), labels.t().flatten(), shard=self.shard
        )
        return losses.view(logits.shape[:2]).t()
