"""Keys and values of earlier tokens, for generation, in pages that several rows may share.

A forward pass that uses a cache is one of two: `Prefill` adds runs of tokens to some rows, `Decode`
one token to each of some rows. Which page belongs to which row is decided outside the model
(`generation/page_tables.py`).
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from megatron_chimed.kernels import CacheIndices, Kernels


class KVCache:
    """Keys and values of the layers of this rank, in pages of equal length.

    A row is a list of pages; its token j is at place j % page_tokens of page j // page_tokens. What
    a token may see follows from its position alone, so a page needs no clearing before it is used
    again.

    Memory: 2 x layers x pages x kv heads/t x page_tokens x d elements.

    Args:
        layers: Global indices of the layers to keep.
        shape: (pages, kv heads/t, page_tokens, d); the number of pages may grow.
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
            layer: [torch.zeros(shape, dtype=dtype, device=device) for _ in range(2)]
            for layer in layers
        }
        self.num_pages, _, self.page_tokens, _ = shape

    def of_layer(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [pages, kv/t, page_tokens, d] of a layer by its global index."""
        keys, values = self._stored[layer]
        return keys, values

    def grow(self, num_pages: int) -> None:
        """Raises the number of pages; one tensor at a time is in memory twice."""
        for pair in self._stored.values():
            for index, stored in enumerate(pair):
                pair[index] = _grown(stored, num_pages)
        self.num_pages = num_pages

    def copy(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` places of one page to another, in every layer."""
        for stored in self._stored.values():
            for tensor in stored:
                tensor[target, :, :length] = tensor[source, :, :length]

    def read(self, layer: int, pages: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of rows, each in one piece.

        Args:
            layer: Its global index.
            pages: int64 [rows, n], the pages of each row.

        Returns:
            [rows, kv/t, n * page_tokens, d] each, copies.
        """
        rows, n = pages.shape
        _, heads, length, width = self._stored[layer][0].shape
        # One copy of whole runs of a head, straight into its place.
        offsets = torch.arange(heads, device=pages.device)[:, None]
        runs = (pages[:, None] * heads + offsets).flatten()  # [rows * kv/t * n]
        keys, values = (
            stored.view(-1, length * width)
            .index_select(0, runs)
            .view(rows, heads, n * length, width)
            for stored in self._stored[layer]
        )
        return keys, values


def _grown(stored: torch.Tensor, num_pages: int) -> torch.Tensor:
    grown = stored.new_zeros(num_pages, *stored.shape[1:])
    grown[: len(stored)] = stored
    return grown


@dataclass(frozen=True, kw_only=True)
class Prefill:
    """Runs of new tokens laid end to end in one row (b = 1), each a segment of its own."""

    cache: KVCache
    tables: Sequence[torch.Tensor]
    """int64 [n] for each run: the pages of its row, enough for the new tokens."""
    starts: Sequence[int]
    """Tokens that each row holds already, which the new ones see too."""
    lengths: Sequence[int]
    """New tokens of each run."""
    wanted: torch.Tensor | None = None
    """int64 [w], the tokens of the pass whose logits are needed; None: there are none."""

    @property
    def sees_earlier(self) -> bool:
        """Whether any run sees tokens that this pass does not compute."""
        return any(self.starts)

    @functools.cached_property
    def _places(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Page and place in it of each new token, int64 [s] each."""
        size, pages, places = self.cache.page_tokens, [], []
        for table, start, length in zip(self.tables, self.starts, self.lengths, strict=True):
            positions = torch.arange(start, start + length, device=table.device)
            pages.append(table[positions // size])
            places.append(positions % size)
        return torch.cat(pages), torch.cat(places)

    @functools.cached_property
    def _masks(self) -> list[torch.Tensor | None]:
        """True where a token of a run may see one of its row, [length, end]; None: causal."""
        masks: list[torch.Tensor | None] = []
        for table, start, length in zip(self.tables, self.starts, self.lengths, strict=True):
            reach = torch.arange(start + length, device=table.device)
            masks.append(reach <= reach[start:, None] if start else None)
        return masks

    def store(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Stores the keys and values [s, 1, kv/t, d] of a layer, after RoPE."""
        pages, places = self._places
        for stored, new in zip(self.cache.of_layer(layer), (key, value), strict=True):
            stored[pages, :, places] = new[:, 0]

    def attend(
        self, layer: int, query: torch.Tensor, attention: Callable[..., torch.Tensor]
    ) -> torch.Tensor:
        """Each run over all of its row, once its keys and values are stored.

        One call for each run, over a copy of its row's pages.

        Args:
            layer: Its global index.
            query: [s, 1, n/t, d].
            attention: As `sdpa_attention`.

        Returns:
            [s, 1, n/t*d].
        """
        runs = []
        queries = query[:, 0].transpose(0, 1).split(list(self.lengths), dim=1)  # [n/t, length, d]
        for run, table, start, mask in zip(
            queries, self.tables, self.starts, self._masks, strict=True
        ):
            end = start + run.shape[1]
            row = (x[:, :, :end] for x in self.cache.read(layer, table[None]))
            attended = attention(run[None], *row, mask=mask, dropout=0.0)  # [1, n/t, length, d]
            runs.append(attended[0].transpose(0, 1))
        return torch.cat(runs).flatten(1).unsqueeze(1)


@dataclass(frozen=True, kw_only=True)
class DecodeGroup:
    """Rows of similar length in one step; made once, for all layers."""

    members: torch.Tensor | None
    """int64 [R], the tokens of the step that are theirs; None: all."""
    pages: torch.Tensor
    """int64 [R, n], the pages of each row; any page may stand where a row has no more."""
    positions: torch.Tensor
    """int64 [R], position of each new token."""
    longest: int
    """The largest position plus 1, on the host."""
    is_whole_cache: bool = False
    """Whether the rows' only pages are those of the cache, in order."""

    def attend(
        self, cache: KVCache, layer: int, new: Sequence[torch.Tensor], kernels: Kernels
    ) -> torch.Tensor:
        """Stores the new keys and values; [R, n/t, d] of queries, keys and values [R, .., d]."""
        query, key, value = new
        stored = cache.of_layer(layer)
        if self.pages.shape[1] == 1:  # nothing to put together: the pages are read in place
            return kernels.cached_attention(query, key, value, stored, indices=self._in_place)
        page, place = self._targets(cache.page_tokens)
        for tensor, addition in zip(stored, (key, value), strict=True):
            tensor[page, :, place] = addition
        row = cache.read(layer, self.pages)
        return kernels.cached_attention(query, key, value, row, indices=self._in_rows)

    def _targets(self, page_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        number = self.positions.unsqueeze(1) // page_tokens
        return self.pages.gather(1, number).squeeze(1), self.positions % page_tokens

    @functools.cached_property
    def _in_place(self) -> CacheIndices:
        return CacheIndices(
            slots=self.pages[:, 0].contiguous(),
            positions=self.positions,
            longest=self.longest,
            is_every_slot=self.is_whole_cache,
        )

    @functools.cached_property
    def _in_rows(self) -> CacheIndices:
        slots = torch.arange(len(self.pages), device=self.pages.device)
        return CacheIndices(
            slots=slots, positions=self.positions, longest=self.longest, is_every_slot=True
        )


@dataclass(frozen=True, kw_only=True)
class Decode:
    """The next token of each of some rows (s = 1)."""

    cache: KVCache
    groups: Sequence[DecodeGroup]

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kernels: Kernels,
    ) -> torch.Tensor:
        """Stores keys and values [1, b, kv/t, d]; queries [1, b, n/t, d] -> [1, b, n/t*d]."""
        new = query[0], key[0], value[0]
        if len(self.groups) == 1 and self.groups[0].members is None:
            attended = self.groups[0].attend(self.cache, layer, new, kernels)
        else:
            attended = torch.empty_like(new[0], memory_format=torch.contiguous_format)
            for group in self.groups:
                part = [x[group.members] for x in new]
                attended[group.members] = group.attend(self.cache, layer, part, kernels)
        return attended.flatten(1).unsqueeze(0)
