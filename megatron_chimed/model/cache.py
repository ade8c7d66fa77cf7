"""Keys and values of earlier tokens, for generation."""

from collections.abc import Sequence

import torch


class KVCache:
    """Pre-allocated keys and values of the layers of this rank.

    Slot j of a row holds its token at position j, so rows of different lengths need no left
    padding: what a query may see follows from positions alone, and a slot that holds a padding
    token is overwritten before any query of its row can reach it.

    Memory: 2 x layers x b x max_length x kv heads/t x d elements.

    Args:
        layers: Global numbers of the layers to keep.
        shape: (b, max_length, kv heads/t, d).
        dtype: Of keys and values.
        device: Where they live.
    """

    def __init__(
        self,
        layers: Sequence[int],
        shape: tuple[int, int, int, int],
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._keys = {i: torch.zeros(shape, dtype=dtype, device=device) for i in layers}
        self._values = {i: torch.zeros(shape, dtype=dtype, device=device) for i in layers}

    def update(
        self,
        layer: int,
        key: torch.Tensor,
        value: torch.Tensor,
        positions: torch.Tensor,
        length: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores new keys and values, returns all up to `length`.

        Args:
            layer: Global layer number.
            key: [s, b, kv/t, d] of the new tokens, already turned by RoPE.
            value: [s, b, kv/t, d].
            positions: [b, s] slots of the new tokens.
            length: Slots that any query can see.

        Returns:
            Keys and values [length, b, kv/t, d].
        """
        keys, values = self._keys[layer], self._values[layer]
        index = positions[:, :, None, None].expand(-1, -1, *key.shape[2:])  # [b, s, kv/t, d]
        keys.scatter_(1, index, key.transpose(0, 1))
        values.scatter_(1, index, value.transpose(0, 1))
        return keys[:, :length].transpose(0, 1), values[:, :length].transpose(0, 1)
