"""Causal grouped-query attention with RoPE.

Shapes: s sequence, b micro-batch, h hidden, n query heads, k key/value heads, d head width,
t tensor-parallel size.
"""

import contextlib
import math
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
import torch.nn.functional as F

from megatron_chimed.config.model import ModelConfig
from megatron_chimed.engine import EngineSettings, tensor_parallel_stream
from megatron_chimed.kernels import AUTO, Kernels, chosen_backend, sdpa
from megatron_chimed.model.kv_cache import Decode, Prefill
from megatron_chimed.model.norm import HeadNorm
from megatron_chimed.model.parallel import (
    FusedBias,
    FusedColumnParallelLinear,
    RowParallelLinear,
)
from megatron_chimed.model.recompute import Recomputed
from megatron_chimed.model.segments import Segments, segmented_attention, why_dense


@dataclass(frozen=True, kw_only=True)
class AttentionContext:
    """What attention needs beside the hidden states; made once per forward pass for all layers."""

    cos: torch.Tensor
    """RoPE cosines [s*b, d/2], fp32."""
    sin: torch.Tensor
    """RoPE sines [s*b, d/2], fp32."""
    mask: torch.Tensor | None = None
    """True where a query may see a key, [b, 1, s, keys]; None is plain causal attention."""
    segments: Segments | None = None
    """Packed samples, which do not attend to each other; not together with a mask."""
    cache: Prefill | Decode | None = None
    """Where keys and values are stored and read when generating."""


def reference_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    mask: torch.Tensor | None,
    segments: Segments | None = None,
    dropout: float,
) -> torch.Tensor:
    """softmax(q k' / sqrt(d)) v with the softmax in fp32, as in the paper.

    Args:
        query: [b, n, s, d].
        key: [b, k, keys, d].
        value: [b, k, keys, d].
        mask: True where visible, broadcast to [b, n, s, keys]; None is causal.
        segments: Packed samples, each attended to for itself; None: the row is one.
        dropout: Probability of dropping an attention weight.

    Source: Vaswani et al., Attention Is All You Need (arXiv 1706.03762), eq. 1.
    """
    group = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(group, dim=1) for x in (key, value))
    scores = query.float() @ key.float().transpose(-1, -2) / math.sqrt(query.shape[-1])
    if segments is not None:
        mask = segments.mask
    elif mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)
    return F.dropout(weights, dropout).to(value.dtype) @ value


def sdpa_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    mask: torch.Tensor | None,
    segments: Segments | None = None,
    dropout: float,
) -> torch.Tensor:
    """The same with torch's fused attention; shapes as in `reference_attention`."""
    if segments is not None:
        return segmented_attention(query, key, value, segments=segments, dropout=dropout)
    return sdpa(query, key, value, mask=mask, dropout=dropout, is_causal=mask is None)


def describe_attention(
    config: ModelConfig, *, dtype: torch.dtype, device: torch.device, packed: bool
) -> str:
    """What computes attention in training, and why if it is not the fastest.

    Args:
        config: The architecture.
        dtype: Of the activations.
        device: That runs it.
        packed: Samples are packed and do not attend to each other.
    """
    if config.attention_backend == "reference":
        return "reference: model.attention_backend asks for it"
    if device.type == "cpu":
        return "sdpa for each packed sample" if packed else "in blocks or sdpa"
    query, key = (
        torch.empty(1, heads, 128, config.head_dim, dtype=dtype, device=device).requires_grad_()
        for heads in (config.num_attention_heads, config.num_key_value_heads)
    )
    if not packed:
        return f"sdpa: {chosen_backend(query, key) or 'no back end takes these heads'}"
    reason = why_dense(query, config.attention_dropout)
    return f"dense s x s mask: {reason}" if reason else "variable-length FLASH"


BACKENDS = {"reference": reference_attention, "sdpa": sdpa_attention}


class Attention(torch.nn.Module):
    """One layer's attention; heads are split over the tensor-parallel ranks."""

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        *,
        settings: EngineSettings,
        group: dist.ProcessGroup,
        kernels: Kernels = AUTO,
    ) -> None:
        super().__init__()
        self.layer, self.head_dim, self.kernels = layer, config.head_dim, kernels
        self.dropout = config.attention_dropout
        self.attend = BACKENDS[config.attention_backend]
        self.selective = config.recompute == "selective"
        kv_width, width = config.kv_width, config.query_width
        self.qkv_proj = FusedColumnParallelLinear(
            config.hidden_size,
            {"q_proj": width, "k_proj": kv_width, "v_proj": kv_width},
            settings=settings,
            group=group,
            smallest=config.head_dim,  # more ranks than key heads: several hold the same
        )
        self.qkv_bias = FusedBias(self.qkv_proj, settings) if config.qkv_bias else None
        norm = partial(
            HeadNorm,
            size=config.head_dim,
            eps=config.rms_norm_eps,
            settings=settings,
            group=group,
            kernels=kernels,
        )
        self.q_norm = norm("q_norm") if config.qk_norm else None
        self.k_norm = norm("k_norm") if config.qk_norm else None
        self.o_proj = RowParallelLinear(
            "o_proj", width, config.hidden_size, settings=settings, group=group
        )

    def forward(
        self, normed: torch.Tensor, context: AttentionContext, norm: Recomputed
    ) -> torch.Tensor:
        """[s(/t), b, h] -> [s(/t), b, h]; `norm` made `normed`, not needed after the projection."""
        qkv = self.qkv_proj(normed)  # [s, b, (n + 2k)/t * d]
        norm.release(consumed_by=qkv)
        if self.qkv_bias is not None:
            qkv = self.qkv_bias(qkv)
        query, key, value = (
            x.unflatten(-1, (-1, self.head_dim)) for x in self.qkv_proj.split(qkv)
        )  # [s, b, n/t, d]

        rope = Recomputed(self.selective)
        query, key = rope(self._norm_and_rotate, query, key, context.cos, context.sin)
        if isinstance(context.cache, Decode):
            attended = context.cache.attend(self.layer, query, key, value, self.kernels)
        else:
            if context.cache is not None:
                context.cache.store(self.layer, key, value)
            if context.cache is not None and context.cache.sees_earlier:
                attended = context.cache.attend(self.layer, query, self.attend)
            else:
                attended = self._attend(query, key, value, context)  # [s, b, n/t*d]
        rope.release(consumed_by=attended)
        return self.o_proj(attended)

    def _norm_and_rotate(
        self, query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        shape = query.shape[:2]  # s, b
        query, key = self.kernels.rope(query.flatten(0, 1), key.flatten(0, 1), cos=cos, sin=sin)
        return query.unflatten(0, shape), key.unflatten(0, shape)

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        context: AttentionContext,
    ) -> torch.Tensor:
        dropout = self.dropout if self.training else 0.0
        is_plain = context.mask is None and context.segments is None and not dropout
        if is_plain and self.attend is sdpa_attention:
            return self.kernels.causal_attention(
                query, key, value, keep=not self.selective
            ).flatten(2)
        heads_first = (x.permute(1, 2, 0, 3) for x in (query, key, value))  # [b, n/t, s, d]
        # Each tensor-parallel rank drops weights of other heads: its own random stream.
        stream = tensor_parallel_stream() if dropout else contextlib.nullcontext()
        with stream:
            attended = self.attend(
                *heads_first, mask=context.mask, segments=context.segments, dropout=dropout
            )
        return attended.permute(2, 0, 1, 3).flatten(2)  # [s, b, n/t*d]
