"""RMSNorm, alone or fused with the residual addition before it."""

import torch

from megatron_chimed.kernels.checks import check_float, check_like, check_shape
from megatron_chimed.kernels.native import FusedOp, implementation
from megatron_chimed.kernels.schemas import define, row_statistics

RMS_NORM = FusedOp(name="rms_norm", kernel="rms_norm_backward", triton="rms_norm")
ADD_RMS_NORM = FusedOp(name="add_rms_norm", kernel="add_rms_norm_backward", triton="rms_norm")

define(
    "rms_norm_forward(Tensor x, Tensor weight, float eps) -> (Tensor y, Tensor rstd)",
    lambda x, weight, eps: (torch.empty_like(x), row_statistics(x)),
    triton=True,
)
define(
    "rms_norm_backward(Tensor dy, Tensor x, Tensor weight, Tensor rstd)"
    " -> (Tensor dx, Tensor dweight)",
    lambda dy, x, weight, rstd: (torch.empty_like(x), torch.empty_like(weight)),
    triton=True,
)
define(
    "add_rms_norm_forward(Tensor x, Tensor residual, Tensor weight, float eps)"
    " -> (Tensor y, Tensor summed, Tensor rstd)",
    lambda x, residual, weight, eps: (
        torch.empty_like(x),
        torch.empty_like(x),
        row_statistics(x),
    ),
    triton=True,
)
define(
    "add_rms_norm_backward(Tensor dy, Tensor dsummed, Tensor summed, Tensor weight, Tensor rstd)"
    " -> (Tensor dx, Tensor dweight)",
    lambda dy, dsummed, summed, weight, rstd: (
        torch.empty_like(summed),
        torch.empty_like(weight),
    ),
    triton=True,
)


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, *, eps: float = 1e-6, backend: str = "auto"
) -> torch.Tensor:
    """Root-mean-square norm: x / sqrt(mean(x^2) + eps) * weight over the last dimension.

    Computed in fp32, cast to the dtype of `x`, then scaled: LLaMA's order. Backward keeps `x` and
    one fp32 number per row.

    Args:
        x: [.., h].
        weight: [h], same dtype and device as `x`.
        eps: Added to the mean square.
        backend: See `native.implementation`.

    Returns:
        [.., h] in the dtype of `x`.

    Raises:
        KernelError: An argument does not fit.

    Source: Zhang and Sennrich, Root Mean Square Layer Normalization (arXiv 1910.07467), eq. 4.
    """
    _check("rms_norm", x, weight)
    ops = implementation(RMS_NORM, backend, x)
    if ops is None:
        return rms_norm_reference(x, weight, eps=eps)
    if not torch.is_grad_enabled():  # autograd's preparations take longer than a small norm
        return ops.rms_norm_forward(x.contiguous(), weight.contiguous(), eps)[0]
    return _RMSNorm.apply(x, weight, eps, ops)


def add_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    *,
    eps: float = 1e-6,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """The residual sum x + residual and its RMSNorm, in one pass.

    Args:
        x: [.., h], the update.
        residual: [.., h], the residual stream, same dtype and device as `x`.
        weight: [h], same dtype and device as `x`.
        eps: Added to the mean square.
        backend: See `native.implementation`.

    Returns:
        (norm, sum), both [.., h] in the dtype of `x`; the norm is that of the rounded sum.

    Raises:
        KernelError: An argument does not fit.
    """
    _check("add_rms_norm", x, weight)
    check_shape("add_rms_norm", "residual", residual, tuple(x.shape))
    check_like("add_rms_norm", "x", x, residual=residual)
    ops = implementation(ADD_RMS_NORM, backend, x)
    if ops is None:
        summed = x + residual
        return rms_norm_reference(summed, weight, eps=eps), summed
    if not torch.is_grad_enabled():
        dense = (x.contiguous(), residual.contiguous(), weight.contiguous())
        return ops.add_rms_norm_forward(*dense, eps)[:2]
    return _AddRMSNorm.apply(x, residual, weight, eps, ops)


def rms_norm_reference(x: torch.Tensor, weight: torch.Tensor, *, eps: float) -> torch.Tensor:
    """What the kernel computes, in plain torch; double stays double."""
    wide = x if x.dtype == torch.float64 else x.float()
    normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return normed.to(x.dtype) * weight


def _check(op: str, x: torch.Tensor, weight: torch.Tensor) -> None:
    check_float(op, x=x)
    width = x.shape[-1] if x.dim() else 0
    check_shape(op, "weight", weight, (width,))
    check_like(op, "x", x, weight=weight)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps, ops):
        x, weight = x.contiguous(), weight.contiguous()
        y, rstd = ops.rms_norm_forward(x, weight, eps)
        ctx.save_for_backward(x, weight, rstd)
        ctx.ops = ops
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        x, weight, rstd = ctx.saved_tensors
        dx, dweight = ctx.ops.rms_norm_backward(dy.contiguous(), x, weight, rstd)
        return dx, dweight, None, None


class _AddRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, residual, weight, eps, ops):
        weight = weight.contiguous()
        y, summed, rstd = ops.add_rms_norm_forward(
            x.contiguous(), residual.contiguous(), weight, eps
        )
        ctx.save_for_backward(summed, weight, rstd)
        ctx.ops = ops
        return y, summed

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy, dsummed):
        summed, weight, rstd = ctx.saved_tensors
        dx, dweight = ctx.ops.add_rms_norm_backward(
            dy.contiguous(), dsummed.contiguous(), summed, weight, rstd
        )
        return dx, dx, dweight, None, None
