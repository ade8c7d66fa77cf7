"""SwiGLU: the gated activation of LLaMA's feed-forward layer."""

import torch
import torch.nn.functional as F

from megatron_chimed.errors import KernelError
from megatron_chimed.kernels.checks import check_float
from megatron_chimed.kernels.native import FusedOp, implementation
from megatron_chimed.kernels.schemas import define

SWIGLU = FusedOp(name="swiglu", kernel="swiglu_backward", triton="swiglu")

define(
    "swiglu_forward(Tensor gate_up) -> Tensor",
    lambda gate_up: gate_up.new_empty((*gate_up.shape[:-1], gate_up.shape[-1] // 2)),
    triton=True,
)
define(
    "swiglu_backward(Tensor dy, Tensor gate_up) -> Tensor",
    lambda dy, gate_up: torch.empty_like(gate_up),
    triton=True,
)


def swiglu(gate_up: torch.Tensor, *, backend: str = "auto") -> torch.Tensor:
    """silu(gate) * up, formed in fp32. Backward keeps the input only and computes silu again.

    Args:
        gate_up: [.., 2f]: the gate, then the factor it is applied to, as one projection gives them.
        backend: See `native.implementation`.

    Returns:
        [.., f] in the dtype of `gate_up`.

    Raises:
        KernelError: An argument does not fit.

    Source: Shazeer, GLU Variants Improve Transformer (arXiv 2002.05202), eq. 6.
    """
    check_float("swiglu", gate_up=gate_up)
    if not gate_up.dim() or gate_up.shape[-1] % 2:
        raise KernelError(
            f"swiglu: gate_up has shape {list(gate_up.shape)}, expected [.., 2f]: an even last "
            "dimension that holds gate and up."
        )
    ops = implementation(SWIGLU, backend, gate_up)
    if ops is None:
        return swiglu_reference(gate_up)
    if not torch.is_grad_enabled():  # autograd's preparations take longer than a small product
        return ops.swiglu_forward(gate_up.contiguous())
    return _SwiGLU.apply(gate_up, ops)


def swiglu_reference(gate_up: torch.Tensor) -> torch.Tensor:
    """What the kernel computes, in plain torch; double stays double."""
    wide = gate_up if gate_up.dtype == torch.float64 else gate_up.float()
    gate, up = wide.chunk(2, dim=-1)  # [.., f] each
    return (F.silu(gate) * up).to(gate_up.dtype)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate_up, ops):
        gate_up = gate_up.contiguous()
        ctx.save_for_backward(gate_up)
        ctx.ops = ops
        return ops.swiglu_forward(gate_up)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        (gate_up,) = ctx.saved_tensors
        return ctx.ops.swiglu_backward(dy.contiguous(), gate_up), None
