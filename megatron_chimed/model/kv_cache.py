"""Keys and values of earlier tokens, for generation.

A forward pass that uses a cache is one of two: `Prefill` adds whole prompts, `Decode` one token to
each of some slots.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from megatron_chimed.kernels import CacheIndices, Kernels


class KVCache:
    """Pre-allocated keys and values of the layers of this rank.

    A slot holds one completion, its token j at position j. What a token may see follows from its
    position alone, so a slot needs no clearing before it is used for another completion.

    Memory: 2 x layers x slots x kv heads/t x max_length x d elements.

    Args:
        layers: Global indices of the layers to keep.
        shape: (slots, kv heads/t, max_length, d).
        dtype: Dtype of keys and values.
        device: Device of keys and values.
    """

    def __init__(
        self,
        layers: Sequence[int],
        shape: tuple[int, int, int, int],
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        # Zeros, since a masked position still takes part in the reference, with weight 0.
        self._stored = {
            layer: (
                torch.zeros(shape, dtype=dtype, device=device),
                torch.zeros(shape, dtype=dtype, device=device),
            )
            for layer in layers
        }

    def of_layer(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [slots, kv/t, max_length, d] of a layer by its global index."""
        return self._stored[layer]

    def copy(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` positions of one slot to another, in every layer."""
        for stored in self._stored.values():
            for tensor in stored:
                tensor[target, :, :length] = tensor[source, :, :length]


@dataclass(frozen=True, kw_only=True)
class Prefill:
    """Prompts laid end to end in one row (b = 1), each a segment of its own."""

    cache: KVCache
    slots: Sequence[int]
    """Slot of each prompt."""
    lengths: Sequence[int]
    """Tokens of each prompt."""

    def store(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Stores the keys and values [s, 1, kv/t, d] of a layer, after RoPE."""
        for stored, new in zip(self.cache.of_layer(layer), (key, value), strict=True):
            start = 0
            for slot, length in zip(self.slots, self.lengths, strict=True):
                run = new[start : start + length, 0]  # [length, kv/t, d]
                stored[slot, :, :length] = run.transpose(0, 1)
                start += length


@dataclass(frozen=True, kw_only=True)
class Decode:
    """The next token of each of some slots (s = 1)."""

    cache: KVCache
    indices: CacheIndices

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kernels: Kernels,
    ) -> torch.Tensor:
        """Stores keys and values [1, b, kv/t, d]; queries [1, b, n/t, d] -> [1, b, n/t*d]."""
        attended = kernels.cached_attention(
            query[0], key[0], value[0], self.cache.of_layer(layer), indices=self.indices
        )
        return attended.flatten(1).unsqueeze(0)
