"""Attention's scaled masked softmax, and the modules under whose names megatron-core looks for it.

Attention runs through torch's fused attention, or on CPU in blocks around this op (`attention`). It
also serves megatron-core's unfused path (`masked_softmax_fusion`).
"""

import math
import sys
import types

import torch

from megatron_chimed.errors import KernelError
from megatron_chimed.kernels import wgrad
from megatron_chimed.kernels.checks import check_float, check_shape
from megatron_chimed.kernels.native import FusedOp, use_fused
from megatron_chimed.kernels.schemas import define

SCALED_MASKED_SOFTMAX = FusedOp(
    name="scaled_masked_softmax", kernel="scaled_masked_softmax_backward"
)

define(
    "scaled_masked_softmax_forward(Tensor x, Tensor? mask, float scale, bool causal) -> Tensor",
    lambda x, mask, scale, causal: torch.empty_like(x),
)
define(
    "scaled_masked_softmax_backward(Tensor dy, Tensor y, float scale) -> Tensor",
    lambda dy, y, scale: torch.empty_like(y),
)


def scaled_masked_softmax(
    x: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    scale: float,
    causal: bool = False,
    backend: str = "auto",
) -> torch.Tensor:
    """softmax(scale * x) over the keys that are not masked, in fp32.

    Args:
        x: Attention scores [b, n, sq, sk].
        mask: Bool [b or 1, 1, sq, sk], True = masked out (Megatron's convention); None: no mask.
        scale: Factor before the softmax.
        causal: The last query sees all keys, each earlier one a key less.
        backend: See `native.implementation`.

    Returns:
        [b, n, sq, sk] in the dtype of `x`. A query all of whose keys are masked gets zeros.

    Raises:
        KernelError: An argument does not fit.
    """
    op = SCALED_MASKED_SOFTMAX.name
    check_float(op, x=x)
    if x.dim() != 4:
        raise KernelError(f"{op}: x has shape {list(x.shape)}, expected [b, n, sq, sk].")
    if mask is not None:
        if mask.dtype != torch.bool or mask.device != x.device:
            raise KernelError(
                f"{op}: mask is {mask.dtype} on {mask.device}, expected torch.bool on {x.device}."
            )
        batch = 1 if mask.dim() and mask.shape[0] == 1 else x.shape[0]
        check_shape(op, "mask", mask, (batch, 1, *x.shape[2:]))
    if not math.isfinite(scale):
        raise KernelError(f"{op}: scale is {scale}, expected a finite number.")
    if not use_fused(SCALED_MASKED_SOFTMAX, backend, x):
        return scaled_masked_softmax_reference(x, mask, scale=scale, causal=causal)
    return _ScaledMaskedSoftmax.apply(x, mask, scale, causal)


def scaled_masked_softmax_reference(
    x: torch.Tensor, mask: torch.Tensor | None, *, scale: float, causal: bool
) -> torch.Tensor:
    """What the kernel computes, in plain torch; double stays double."""
    wide = (x if x.dtype == torch.float64 else x.float()) * scale
    if causal:
        ones = torch.ones(x.shape[2:], dtype=torch.bool, device=x.device)  # [sq, sk]
        future = ones.triu(1 + x.shape[3] - x.shape[2])
        mask = future if mask is None else mask | future
    if mask is None:
        return wide.softmax(dim=-1).to(x.dtype)
    probabilities = wide.masked_fill(mask, -torch.inf).softmax(dim=-1)
    # A row without a key is 0/0, and the gradient of that NaN must not reach x either.
    return probabilities.masked_fill(mask, 0.0).to(x.dtype)


class _ScaledMaskedSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, mask, scale, causal):
        mask = None if mask is None else mask.contiguous()
        y = torch.ops.chimed.scaled_masked_softmax_forward(x.contiguous(), mask, scale, causal)
        ctx.save_for_backward(y)
        ctx.scale = scale
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        (y,) = ctx.saved_tensors
        dx = torch.ops.chimed.scaled_masked_softmax_backward(dy.contiguous(), y, ctx.scale)
        return dx, None, None, None


def register_megatron_modules() -> list[str]:
    """Puts our kernels where megatron-core looks for those that apex builds.

    Call before importing megatron-core: it looks for one of them at import. Modules that are
    already there, e.g. from a real apex build, are left alone.

    Returns:
        The names that were added to `sys.modules`.
    """
    contents = {
        "scaled_upper_triang_masked_softmax_cuda": _causal_module(),
        "scaled_masked_softmax_cuda": _masked_module(),
        "scaled_softmax_cuda": _plain_module(),
        "fused_weight_gradient_mlp_cuda": {
            "wgrad_gemm_accum_fp32": wgrad.wgrad_gemm_accum_fp32,
            "wgrad_gemm_accum_fp16": wgrad.wgrad_gemm_accum_fp16,
        },
    }
    added = [name for name in contents if name not in sys.modules]
    for name in added:
        module = types.ModuleType(name, "Stands in for the module that apex builds.")
        vars(module).update(contents[name])
        sys.modules[name] = module
    return added


def _softmax_backward(dy, y, scale):
    """Gradient of the scores, from the softmax's output; the scale is a tensor of one element."""
    if use_fused(SCALED_MASKED_SOFTMAX, "auto", y):
        op = torch.ops.chimed.scaled_masked_softmax_backward
        return op(dy.contiguous(), y.contiguous(), float(scale))
    wide_dy, wide_y = dy.float(), y.float()
    dot = (wide_dy * wide_y).sum(dim=-1, keepdim=True)
    return (float(scale) * wide_y * (wide_dy - dot)).to(y.dtype)


def _causal_module():
    def forward(x, scale):  # [attention batches, sq, sk]
        scores = x.unsqueeze(0)
        y = scaled_masked_softmax(scores, scale=float(scale), causal=True)
        return y.squeeze(0)

    return {"forward": forward, "backward": _softmax_backward}


def _masked_module():
    def forward(x, mask, scale):
        return scaled_masked_softmax(x, mask, scale=float(scale))

    def get_batch_per_block(sq, sk, b, np):
        """Sizes are no matter to our kernels; megatron-core asks whether this divides b * np."""
        return 1

    return {
        "forward": forward,
        "backward": _softmax_backward,
        "get_batch_per_block": get_batch_per_block,
    }


def _plain_module():
    def forward(x, scale):  # [b, n, sq, sk] or [attention batches, sq, sk]
        scores = x if x.dim() == 4 else x.unsqueeze(0)
        return scaled_masked_softmax(scores, scale=float(scale)).view_as(x)

    return {"forward": forward, "backward": _softmax_backward}
