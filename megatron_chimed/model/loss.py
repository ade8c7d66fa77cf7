"""Next-token loss over a vocabulary that is split over ranks."""

import torch
from megatron.core import tensor_parallel


def token_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each token, in fp32.

    Args:
        logits: [s, b, padded v/t]; padding holds -inf. Overwritten when fp32.
        labels: [b, s] int64 in [0, v); a label outside is a silent error below, so batches are
            checked before the model.

    Returns:
        [b, s] fp32.
    """
    losses = tensor_parallel.vocab_parallel_cross_entropy(logits, labels.t().contiguous())
    return losses.t()
