"""Causal attention: torch's kernel, or on one CPU thread one that multiplies whole matrices.

torch's CPU kernel forms its products in small tiles. Here a block of queries meets the keys up to
its last token in one product, so that few masked scores are formed, and backward finds the
probabilities in memory: measured, forward and backward 1.75 times as fast at 512 tokens of width
64, 1.2 at 128. Each product is a parallel region of its own, hundreds where torch's kernel has one,
so it is left to that with more than one thread.
"""

from collections.abc import Iterator

import torch

from megatron_chimed.errors import KernelError
from megatron_chimed.kernels.checks import check_float, check_like, check_shape
from megatron_chimed.kernels.native import ComposedOp, use_fused
from megatron_chimed.kernels.sdpa import sdpa
from megatron_chimed.kernels.softmax import SCALED_MASKED_SOFTMAX

CAUSAL_ATTENTION = ComposedOp(
    name="causal_attention",
    cpu=("in blocks or sdpa", "blocks pay for fp32, one thread and 128 to 1024 tokens"),
    cuda=("sdpa", "torch's fused attention: cuDNN or FLASH"),
)

BLOCK = 64
"""Queries in a block; half of the scores in its last square are computed in vain."""

TOKENS = range(128, 1025)
"""Sequence lengths at which blocks pay. The probabilities take s / 2d times the queries' memory."""


def causal_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    keep: bool = True,
    backend: str = "auto",
) -> torch.Tensor:
    """softmax(q k' / sqrt(d)) v, where a query sees its own and earlier tokens.

    Args:
        query: [s, b, n, d].
        key: [s, b, k, d], k a divisor of n; same dtype and device.
        value: [s, b, k, d].
        keep: Backward may find the probabilities in memory; else it forms them again, to the bit.
        backend: See `native.implementation`; `reference` is always torch's kernel.

    Returns:
        [s, b, n, d], dense.

    Raises:
        KernelError: An argument does not fit.

    Source: Vaswani et al., Attention Is All You Need (arXiv 1706.03762), eq. 1; Dao et al.,
    FlashAttention (arXiv 2205.14135), appendix B, for the backward pass.
    """
    op = CAUSAL_ATTENTION.name
    check_float(op, query=query)
    check_like(op, "query", query, key=key, value=value)
    if query.dim() != 4 or key.dim() != 4 or query.shape[2] % max(1, key.shape[2]):
        raise KernelError(
            f"{op}: query has shape {list(query.shape)} and key {list(key.shape)}, expected "
            "[s, b, n, d] and [s, b, k, d] with k a divisor of n."
        )
    check_shape(op, "key", key, (*query.shape[:2], key.shape[2], query.shape[3]))
    check_shape(op, "value", value, tuple(key.shape))
    if _pays(query) and use_fused(SCALED_MASKED_SOFTMAX, backend, query):
        return _BlockedAttention.apply(query, key, value, keep)
    q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))  # [b, n, s, d]
    attended = sdpa(q, k, v, is_causal=True)
    return attended.permute(2, 0, 1, 3).contiguous()


def _pays(query: torch.Tensor) -> bool:
    is_plain = query.device.type == "cpu" and query.dtype == torch.float32
    return is_plain and query.shape[0] in TOKENS and torch.get_num_threads() == 1


class _BlockedAttention(torch.autograd.Function):
    """`causal_attention` in blocks, for fp32 on CPU.

    Below, p = b * k pairs of keys and values are each read by g = n / k queries of every token.
    """

    @staticmethod
    def forward(ctx, query, key, value, keep):
        pairs = key.shape[1] * key.shape[2]
        q, k, v = _grouped(query, pairs), _paired(key), _paired(value)
        output, kept = torch.empty(query.shape), []
        out = _grouped(output, pairs)
        for rows, seen in _blocks(query.shape[0]):
            probabilities = _probabilities(q, k, rows, seen)
            attended = probabilities.flatten(1, 2) @ v[:, seen]  # [p, g * rows, d]
            out[:, :, rows] = attended.view(out[:, :, rows].shape)
            if keep:
                kept.append(probabilities)
        ctx.save_for_backward(q, k, v, *kept)
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, doutput):
        q, k, v, *kept = ctx.saved_tensors
        dquery = torch.empty(doutput.shape)
        dq, dout = _grouped(dquery, len(k)), _grouped(doutput, len(k))
        dk, dv = torch.zeros_like(k), torch.zeros_like(v)
        for rows, seen in _blocks(q.shape[2]):
            probabilities = kept.pop(0) if kept else _probabilities(q, k, rows, seen)
            upstream = dout[:, :, rows].flatten(1, 2)  # [p, g * rows, d]
            dv[:, seen].baddbmm_(probabilities.flatten(1, 2).mT, upstream)
            dprobabilities = (upstream @ v[:, seen].mT).view(probabilities.shape)
            dscores = torch.ops.chimed.scaled_masked_softmax_backward(
                dprobabilities, probabilities, _scale(q)
            ).flatten(1, 2)  # [p, g * rows, seen]
            dq[:, :, rows] = (dscores @ k[:, seen]).view(dq[:, :, rows].shape)
            dk[:, seen].baddbmm_(dscores.mT, q[:, :, rows].flatten(1, 2))
        s, b, _, d = doutput.shape
        return dquery, *(x.transpose(0, 1).reshape(s, b, -1, d) for x in (dk, dv)), None


def _probabilities(q: torch.Tensor, k: torch.Tensor, rows: slice, seen: slice) -> torch.Tensor:
    """Probabilities of one block: [p, g, rows, seen]."""
    block = q[:, :, rows]
    scores = (block.flatten(1, 2) @ k[:, seen].mT).view(*block.shape[:3], -1)
    return torch.ops.chimed.scaled_masked_softmax_forward(scores, None, _scale(q), True)


def _scale(q: torch.Tensor) -> float:
    return q.shape[-1] ** -0.5


def _blocks(s: int) -> Iterator[tuple[slice, slice]]:
    """The queries of each block, and the keys that its last query sees."""
    for first in range(0, s, BLOCK):
        last = min(first + BLOCK, s)
        yield slice(first, last), slice(last)


def _paired(x: torch.Tensor) -> torch.Tensor:
    """[s, b, k, d] -> [p, s, d]."""
    return x.flatten(1, 2).transpose(0, 1)


def _grouped(x: torch.Tensor, pairs: int) -> torch.Tensor:
    """[s, b, n, d] -> [p, g, s, d]."""
    return x.reshape(x.shape[0], pairs, -1, x.shape[-1]).permute(1, 2, 0, 3)
