"""Next-token loss over a vocabulary that is sharded over ranks."""

import torch
import torch.distributed as dist
from megatron.core import tensor_parallel

from megatron_chimed.config.model import ModelConfig
from megatron_chimed.kernels import AUTO, Kernels, VocabShard
from megatron_chimed.model.parallel import VocabParallelHead


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
        self.shard = VocabShard(
            size=config.known_vocab_size, start=group.rank() * share, group=group
        )
        self.kernels = kernels
        self.is_chunked = config.chunk_tokens > 0
        """The model forms losses from hidden states itself (`chunked_losses`)."""

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


def chunked_losses(
    hidden: torch.Tensor,
    labels: torch.Tensor,
    *,
    head: VocabParallelHead,
    chunk_tokens: int,
    kernels: Kernels,
) -> torch.Tensor:
    """Head and loss in one, so that the logits of all tokens never exist.

    Args:
        hidden: [s(/t), b, h], normed.
        labels: [b, s] int64.
        head: Whose logits the loss is of.
        chunk_tokens: Tokens whose logits exist at a time.
        kernels: The ops, bound to a back end.

    Returns:
        Losses [b, s], fp32.

    Raises:
        KernelError: A label is outside the vocabulary.
    """
    group = head.tp_group
    if head.sequence_parallel:
        hidden = tensor_parallel.gather_from_sequence_parallel_region(hidden, group=group)
    else:
        hidden = tensor_parallel.copy_to_tensor_model_parallel_region(hidden, group=group)
    start = group.rank() * head.weight.shape[0]
    losses = kernels.linear_cross_entropy(
        hidden.flatten(0, 1),
        head.weight,
        labels.t().flatten(),
        shard=VocabShard(size=head.vocab_size, start=start, group=group),
        chunk_tokens=chunk_tokens,
    )
    return losses.view(hidden.shape[:2]).t()
