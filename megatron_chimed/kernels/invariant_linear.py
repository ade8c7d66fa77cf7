"""A product whose rows do not depend on each other, bit for bit: generation uses it."""

import torch
import torch.nn.functional as F

from megatron_chimed.errors import KernelError
from megatron_chimed.kernels.checks import check_float, check_like
from megatron_chimed.kernels.native import FusedOp, use_fused
from megatron_chimed.kernels.schemas import define

INVARIANT_LINEAR = FusedOp(
    name="invariant_linear",
    kernel="invariant_linear",
    why_cpu_only="on CUDA torch's linear does it",
)

define(
    "invariant_linear(Tensor x, Tensor weight) -> Tensor",
    lambda x, weight: x.new_empty((*x.shape[:-1], weight.shape[0])),
)


def invariant_linear(
    x: torch.Tensor, weight: torch.Tensor, *, backend: str = "auto"
) -> torch.Tensor:
    """The product x weight^T, summed in fp32, without gradients.

    The fused kernel gives a row the same bits whatever other rows there are and however many
    threads; other libraries choose their order of summation by the number of rows. With few rows it
    is faster than they are, since it reads the weight once, in order. The reference, used on CUDA,
    guarantees neither.

    Args:
        x: [.., k].
        weight: [n, k], same dtype and device as `x`.
        backend: See `native.implementation`.

    Returns:
        [.., n] in the dtype of `x`.

    Raises:
        KernelError: An argument does not fit.
    """
    check_float("invariant_linear", x=x)
    check_like("invariant_linear", "x", x, weight=weight)
    if not x.dim() or weight.dim() != 2 or weight.shape[1] != x.shape[-1]:
        raise KernelError(
            f"invariant_linear: x has shape {list(x.shape)} and weight {list(weight.shape)}, "
            "expected [.., k] and [n, k]."
        )
    if use_fused(INVARIANT_LINEAR, backend, x):
        return torch.ops.chimed.invariant_linear(x.contiguous(), weight.contiguous())
    return F.linear(x, weight)
