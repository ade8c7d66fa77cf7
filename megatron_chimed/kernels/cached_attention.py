"""Attention of new tokens over a cache of keys and values, for one step of generation."""

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from megatron_chimed.errors import KernelError
from megatron_chimed.kernels.checks import check_float, check_like, check_shape
from megatron_chimed.kernels.native import FusedOp, use_fused
from megatron_chimed.kernels.schemas import define

CACHED_ATTENTION = FusedOp(
    name="cached_attention",
    kernel="cached_attention",
    why_cpu_only="on CUDA torch's fused attention does it",
)

define(
    "cached_attention(Tensor query, Tensor key, Tensor value, Tensor(a!) keys, Tensor(b!) values,"
    " Tensor slots, Tensor positions) -> Tensor",
    lambda query, *_: query.new_empty(query.shape),
)


@dataclass(frozen=True, kw_only=True)
class CacheIndices:
    """Where the tokens of one step are in the cache; made once, for all layers."""

    slots: torch.Tensor
    """int64 [T], ascending: the cache slot of each token, at most one token per slot."""
    positions: torch.Tensor
    """int64 [T]: the position of each token in its slot."""
    longest: int
    """The largest position plus 1, on the host."""
    is_every_slot: bool = False
    """Whether the slots are all slots of the cache, so that the reference need not pick them."""

    @functools.cached_property
    def visible(self) -> torch.Tensor:
        """True where a token may see a position, [T, 1, 1, longest]: only the reference asks."""
        reach = torch.arange(self.longest, device=self.positions.device)
        return (reach <= self.positions[:, None])[:, None, None]


def cached_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cache: tuple[torch.Tensor, torch.Tensor],
    *,
    indices: CacheIndices,
    backend: str = "auto",
) -> torch.Tensor:
    """Stores one new token for each slot, then attends over all that its slot holds.

    The fused kernel reads the positions that a token sees and no others, and gives a token the
    same bits whatever other tokens share the call. No gradient is computed.

    Args:
        query: [T, n, d]; a view into a fused qkv is read in place if its heads are contiguous.
        key: [T, k, d], after RoPE.
        value: [T, k, d].
        cache: Keys and values [slots, k, max_length, d] each, dense; written in place.
        indices: Slots and positions of the tokens.
        backend: See `native.implementation`.

    Returns:
        [T, n, d] in the dtype of `query`.

    Raises:
        KernelError: An argument does not fit.

    Source: Vaswani et al., Attention Is All You Need (arXiv 1706.03762), eq. 1.
    """
    _check(query, key, value, cache)
    if use_fused(CACHED_ATTENTION, backend, query):
        return torch.ops.chimed.cached_attention(
            query, key, value, *cache, indices.slots, indices.positions
        )
    return cached_attention_reference(query, key, value, cache, indices=indices)


def cached_attention_reference(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cache: tuple[torch.Tensor, torch.Tensor],
    *,
    indices: CacheIndices,
) -> torch.Tensor:
    """What the kernel computes, in plain torch: every token over the longest's positions."""
    for stored, new in zip(cache, (key, value), strict=True):
        stored[indices.slots, :, indices.positions] = new
    # Cut before slots are picked: a copy of positions that no token sees would cost the most.
    reached = (stored[:, :, : indices.longest] for stored in cache)
    keys, values = (
        stored if indices.is_every_slot else stored[indices.slots] for stored in reached
    )  # [T, k, longest, d]
    attended = F.scaled_dot_product_attention(
        query.unsqueeze(2),
        keys,
        values,
        attn_mask=indices.visible,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return attended.squeeze(2)


def _check(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cache: tuple[torch.Tensor, torch.Tensor],
) -> None:
    op, keys = CACHED_ATTENTION.name, cache[0]
    check_float(op, query=query)
    check_like(op, "query", query, key=key, value=value, keys=keys, values=cache[1])
    if query.dim() != 3 or keys.dim() != 4 or query.shape[1] % keys.shape[1]:
        raise KernelError(
            f"{op}: query has shape {list(query.shape)} and keys {list(keys.shape)}, expected "
            "[tokens, heads, width] and [slots, key heads, max length, width], where the heads "
            "are a multiple of the key heads."
        )
    shape = (query.shape[0], keys.shape[1], query.shape[2])
    check_shape(op, "key", key, shape)
    check_shape(op, "value", value, shape)
    check_shape(op, "keys", keys, (*keys.shape[:3], query.shape[2]))
    check_shape(op, "values", cache[1], tuple(keys.shape))
