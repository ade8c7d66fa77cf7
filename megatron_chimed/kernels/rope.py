"""Rotary position embedding of queries and keys together."""

from typing import Any

import torch

from megatron_chimed.errors import KernelError
from megatron_chimed.kernels.checks import check_float, check_like, check_shape
from megatron_chimed.kernels.native import FusedOp, implementation
from megatron_chimed.kernels.schemas import define

ROPE = FusedOp(name="rope", kernel="rope", triton="rope")

define(
    "rope(Tensor q, Tensor k, Tensor cos, Tensor sin, bool inverse)"
    " -> (Tensor q_out, Tensor k_out)",
    lambda q, k, cos, sin, inverse: (q.new_empty(q.shape), k.new_empty(k.shape)),
    triton=True,
)


def rope_frequencies(
    head_dim: int, *, theta: float = 10000.0, device: torch.device | None = None
) -> torch.Tensor:
    """Radians that each pair of a head turns per position: [d/2] fp32, without any scaling."""
    pairs = torch.arange(0, head_dim, 2, dtype=torch.int64, device=device).float()
    return 1.0 / (theta ** (pairs / head_dim))


def rope(
    q: torch.Tensor,
    k: torch.Tensor,
    *,
    cos: torch.Tensor,
    sin: torch.Tensor,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotates each pair (i, i + d/2) of every head by its token's angle, in fp32.

    Views into a fused qkv are read where they are; on CPU, if a token's heads lie side by side.

    Args:
        q: Queries [T, n, d].
        k: Keys [T, nk, d], same dtype and device.
        cos: [T, d/2] fp32, of positions x `rope_frequencies`; no gradient flows to it.
        sin: [T, d/2] fp32.
        backend: See `native.implementation`.

    Returns:
        The rotated queries and keys, dense, in their dtype.

    Raises:
        KernelError: An argument does not fit.

    Source: Su et al., RoFormer (arXiv 2104.09864), eq. 34, in LLaMA's half-split order.
    """
    _check(q, k, cos, sin)
    ops = implementation(ROPE, backend, q)
    if ops is None:
        return rope_reference(q, cos, sin), rope_reference(k, cos, sin)
    if not torch.is_grad_enabled():  # autograd's preparations take longer than a few tokens
        return _rotate(ops, q, k, (cos, sin))
    return _Rope.apply(q, k, cos, sin, ops)


def rope_reference(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """What the kernel computes for one of q and k, in plain torch; double stays double."""
    wide = x if x.dtype == torch.float64 else x.float()
    cos, sin = cos.to(wide.dtype).unsqueeze(1), sin.to(wide.dtype).unsqueeze(1)  # [T, 1, d/2]
    first, second = wide.chunk(2, dim=-1)  # [T, n, d/2]
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return rotated.to(x.dtype)


def _check(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    check_float("rope", q=q)
    for name, x in (("q", q), ("k", k)):
        if x.dim() != 3 or x.shape[-1] % 2:
            raise KernelError(
                f"rope: {name} has shape {list(x.shape)}, expected [tokens, heads, an even width]."
            )
    check_like("rope", "q", q, k=k)
    check_shape("rope", "k", k, (q.shape[0], k.shape[1], q.shape[2]))
    for name, angle in (("cos", cos), ("sin", sin)):
        check_shape("rope", name, angle, (q.shape[0], q.shape[2] // 2))
        if angle.dtype not in (torch.float32, torch.float64) or angle.device != q.device:
            raise KernelError(
                f"rope: {name} is {angle.dtype} on {angle.device}, expected torch.float32 on "
                f"{q.device}."
            )


def _with_dense_heads(x: torch.Tensor) -> torch.Tensor:
    # The CUDA and Triton kernels take the heads' stride as an argument; the CPU kernel does not.
    readable = x.stride(2) == 1 and (x.is_cuda or x.stride(1) == x.shape[2])
    return x if readable else x.contiguous()


def _rotate(
    ops: Any, q: torch.Tensor, k: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    cos, sin = (x.float().contiguous() for x in angles)
    return ops.rope(_with_dense_heads(q), _with_dense_heads(k), cos, sin, False)


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, cos, sin, ops):
        ctx.save_for_backward(cos.float().contiguous(), sin.float().contiguous())
        ctx.ops = ops
        return _rotate(ops, q, k, (cos, sin))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dq, dk):
        cos, sin = ctx.saved_tensors
        dq, dk = _with_dense_heads(dq), _with_dense_heads(dk)
        dq, dk = ctx.ops.rope(dq, dk, cos, sin, True)
        return dq, dk, None, None, None
