"""Attention within packed samples: a token sees only earlier tokens of its own segment.

Positions do not matter here: RoPE turns by what the batch says.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch

from megatron_chimed.errors import warn
from megatron_chimed.kernels import capability, sdpa


class Segments:
    """The segments of a micro-batch; made once per forward pass, for all layers.

    Args:
        ids: int [b, s], the number of each token's segment; a segment is a run of equal numbers.
    """

    def __init__(self, ids: torch.Tensor) -> None:
        self.ids = ids

    @functools.cached_property
    def mask(self) -> torch.Tensor:
        """True where a query may see a key, [b, 1, s, s]: b x s^2 bytes."""
        same = self.ids[:, None, :, None] == self.ids[:, None, None, :]
        return same.tril()

    @functools.cached_property
    def lengths(self) -> list[list[int]]:
        """Tokens of each segment of each row, on the host: one synchronisation on CUDA."""
        return [torch.unique_consecutive(row, return_counts=True)[1].tolist() for row in self.ids]

    @functools.cached_property
    def bounds(self) -> torch.Tensor:
        """int32 [segments + 1]: where each segment starts in the concatenated rows."""
        sizes = torch.tensor([0, *(n for row in self.lengths for n in row)])
        return sizes.cumsum(0).to(self.ids.device, torch.int32)

    @property
    def longest(self) -> int:
        """Tokens of the longest segment."""
        return max(max(row) for row in self.lengths)


def segmented_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    segments: Segments,
    dropout: float,
) -> torch.Tensor:
    """softmax(q k' / sqrt(d)) v within each segment, by the fastest exact method available.

    On CUDA torch's variable-length kernel where it takes the arguments (half precision, no dropout,
    a head width of whole 8s up to 256, compute capability 8.0); else a dense mask, after a warning.
    On CPU one fused call per segment: a mask would cost all s^2 products, of which few count.

    Args:
        query: [b, n, s, d].
        key: [b, k, s, d].
        value: [b, k, s, d].
        segments: Of the micro-batch.
        dropout: Probability of dropping an attention weight.

    Returns:
        [b, n, s, d].
    """
    fused = functools.partial(sdpa, dropout=dropout)
    if not query.is_cuda:
        return _segment_by_segment(query, key, value, segments=segments, attend=fused)
    kernel = variable_length_kernel()
    reason = why_dense(query, dropout)
    if kernel is None or reason:
        b, _, s, _ = query.shape
        _warn_about_mask(reason, b, s)
        return fused(query, key, value, mask=segments.mask)
    return variable_length_attention(query, key, value, segments=segments, kernel=kernel)


def why_dense(query: torch.Tensor, dropout: float) -> str:
    """Why packed samples on a GPU need a dense mask, which costs all s^2 products, or ''.

    Args:
        query: [b, n, s, d] on CUDA; only its shape, type and device matter.
        dropout: Probability of dropping an attention weight.
    """
    width = query.shape[-1]
    if variable_length_kernel() is None:
        return f"torch {torch.__version__} has no variable-length kernel that we know"
    if query.dtype == torch.float32:
        return "the variable-length kernel does not compute in fp32: set --training.precision bf16"
    if dropout:
        return (
            f"the variable-length kernel drops no attention weights, and model.attention_dropout "
            f"is {dropout:g}: set it to 0"
        )
    if width % 8 or width > 256:
        return f"the variable-length kernel takes heads of whole 8s up to 256, not of {width}"
    if (found := capability(query.device)) < (8, 0):
        return (
            "the variable-length kernel needs compute capability 8.0, and this GPU has "
            f"{found[0]}.{found[1]}"
        )
    return ""


@functools.cache
def _warn_about_mask(reason: str, b: int, s: int) -> None:
    """Once for each shape: the mask is as large as the sequence squared, and so is the work."""
    warn(
        f"packed samples are attended to through a dense mask of {b * s * s / 2**20:,.0f} MiB "
        f"({b} x {s} x {s}), and each layer computes all s x s products, since {reason}."
    )


def _segment_by_segment(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    segments: Segments,
    attend: Callable[..., torch.Tensor],
) -> torch.Tensor:
    rows = []
    for row, lengths in enumerate(segments.lengths):
        split = [x[row : row + 1].split(lengths, dim=2) for x in (query, key, value)]
        parts = [attend(*segment, is_causal=True) for segment in zip(*split, strict=True)]
        rows.append(torch.cat(parts, dim=2))
    return torch.cat(rows)


def variable_length_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    segments: Segments,
    kernel: Callable[..., torch.Tensor],
) -> torch.Tensor:
    """All segments of all rows in one call of a kernel for concatenated sequences."""
    shape = query.shape[0], query.shape[2]  # b, s
    flat = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))  # [b*s, n, d]
    attended = kernel(
        *flat,
        segments.bounds,
        segments.bounds,
        segments.longest,
        segments.longest,
        window_size=(-1, 0),  # causal
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return attended.unflatten(0, shape).transpose(1, 2)


@functools.cache
def variable_length_kernel() -> Callable[..., Any] | None:
    """The kernel of torch for concatenated sequences, or None."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    is_known = {"window_size", "enable_gqa"} <= inspect.signature(varlen_attn).parameters.keys()
    return varlen_attn if is_known else None
