"""RoPE in Triton: a program rotates up to `HEADS` heads of one token, of q and of k."""

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

from megatron_chimed.kernels.triton_ops.launch import launch, register

HEADS = 16


@triton.jit
def rotate_heads(
    x_ptr, out_ptr, token_stride, head_stride, num_heads, cos, sin, half, HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Rotates pairs (i, i + half) of some heads; `out` is dense, x has strides."""
    token = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]  # [HEADS, 1]
    pairs = tl.arange(0, BLOCK)[None, :]  # [1, BLOCK]
    inside = (heads < num_heads) & (pairs < half)
    x_ptrs = x_ptr + token * token_stride + heads.to(tl.int64) * head_stride + pairs
    first = tl.load(x_ptrs, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(x_ptrs + half, mask=inside, other=0.0).to(tl.float32)
    out_ptrs = out_ptr + (token * num_heads + heads) * 2 * half + pairs
    tl.store(out_ptrs, first * cos - second * sin, mask=inside)
    tl.store(out_ptrs + half, second * cos + first * sin, mask=inside)


@triton.jit
def rope_kernel(
    q_ptr,
    k_ptr,
    cos_ptr,
    sin_ptr,
    q_out_ptr,
    k_out_ptr,
    q_token_stride,
    q_head_stride,
    k_token_stride,
    k_head_stride,
    q_heads,
    k_heads,
    half,
    INVERSE: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Rotates q and k of one token; cos and sin are [T, half]."""
    pairs = tl.arange(0, BLOCK)[None, :]
    angles = tl.program_id(0).to(tl.int64) * half + pairs
    cos = tl.load(cos_ptr + angles, mask=pairs < half, other=0.0)
    sin = tl.load(sin_ptr + angles, mask=pairs < half, other=0.0)
    if INVERSE:
        sin = -sin
    rotate_heads(
        q_ptr, q_out_ptr, q_token_stride, q_head_stride, q_heads, cos, sin, half, HEADS, BLOCK
    )
    rotate_heads(
        k_ptr, k_out_ptr, k_token_stride, k_head_stride, k_heads, cos, sin, half, HEADS, BLOCK
    )


def rope(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, inverse: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """See the schema of this name."""
    q_out, k_out = q.new_empty(q.shape), k.new_empty(k.shape)
    half = q.shape[2] // 2
    q_heads, k_heads = q.shape[1], k.shape[1]
    launch(
        rope_kernel,
        (q.shape[0], triton.cdiv(max(q_heads, k_heads), HEADS)),
        *(q, k, cos, sin, q_out, k_out),
        *q.stride()[:2],
        *k.stride()[:2],
        *(q_heads, k_heads, half),
        INVERSE=inverse,
        HEADS=HEADS,
        BLOCK=triton.next_power_of_2(max(1, half)),
    )
    return q_out, k_out


register(rope=rope)
