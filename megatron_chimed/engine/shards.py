"""How a rank's memory maps to the tensors of the whole model.

A parameter holds shards of one or more named global tensors (a fused QKV weight holds three): its
`ShardSpec`s. They determine the `TensorShard`s of the weight itself, of its Adam moments, and of a
flat range of either, as the distributed optimizer keeps them. Checkpoints, initialisation and
conversion work on these shards, so no other module knows how a tensor is split.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch


@dataclass(frozen=True, kw_only=True)
class ShardSpec:
    """Rows of a local parameter that hold a shard of one global tensor."""

    key: str
    """Name of the global tensor: the Hugging Face name."""
    global_shape: tuple[int, ...]
    """True shape, without the padding of a vocabulary."""
    offset: tuple[int, ...]
    """Where the shard starts in the global tensor."""
    first_row: int
    """Where the shard starts in the parameter's dimension 0."""
    rows: int
    """Rows of the parameter that belong to the shard, without padding rows."""
    copies: int = 1
    """Neighbouring tensor-parallel ranks that hold this same shard and compute a part of its
    gradient each (`shared_rows`). Not so for a weight whose gradient is complete on every rank."""


@dataclass(frozen=True, kw_only=True)
class TensorShard:
    """A shard of a global tensor and the memory that holds it here."""

    key: str
    """Name of the global tensor."""
    global_shape: tuple[int, ...]
    """Shape of the global tensor."""
    offset: tuple[int, ...]
    """Where the shard starts in the global tensor."""
    tensor: torch.Tensor
    """A view of live memory, any strides; its shape is the shard's."""


@runtime_checkable
class ShardedLayer(Protocol):
    """A module whose parameter `weight` holds shards of global tensors."""

    def shard_specs(self, prefix: str) -> list[ShardSpec]:
        """What the weight holds; `prefix` is the path of the owning module."""
        ...


def row_shards(
    specs: Sequence[ShardSpec], local: torch.Tensor, *, prefix: str = ""
) -> Iterator[TensorShard]:
    """The shards of a tensor that has the parameter's own shape.

    Args:
        specs: What the parameter holds.
        local: The parameter, or a moment of the same shape.
        prefix: Put before each key, for example `exp_avg.`.
    """
    for spec in specs:
        if spec.rows > 0:
            yield TensorShard(
                key=prefix + spec.key,
                global_shape=spec.global_shape,
                offset=spec.offset,
                tensor=local.detach().narrow(0, spec.first_row, spec.rows),
            )


def flat_shards(
    specs: Sequence[ShardSpec],
    local_shape: Sequence[int],
    flat: torch.Tensor,
    *,
    start: int,
    prefix: str = "",
) -> Iterator[TensorShard]:
    """The shards of a flat range: elements [start, start + len(flat)) of the flattened parameter.

    A range of a row-major matrix is at most three rectangles (the end of a row, full rows, the
    start of a row), so any range is written and read without gathering its parameter.

    Args:
        specs: What the parameter holds.
        local_shape: Shape of the parameter, one or two dimensions.
        flat: One-dimensional memory of the range.
        start: Index of the range's first element in the flattened parameter.
        prefix: Put before each key.
    """
    columns = math.prod(local_shape[1:])
    for spec in specs:
        low = max(start, spec.first_row * columns)
        high = min(start + flat.numel(), (spec.first_row + spec.rows) * columns)
        base = spec.first_row * columns
        for row, column, height, width in _rectangles(low - base, high - base, columns):
            begin = base + row * columns + column - start
            values = flat.detach().narrow(0, begin, height * width)
            place = (row, column)[: len(local_shape)]
            yield TensorShard(
                key=prefix + spec.key,
                global_shape=spec.global_shape,
                offset=tuple(o + p for o, p in zip(spec.offset, place, strict=True)),
                tensor=values.view((height, width)[: len(local_shape)]),
            )


def _rectangles(low: int, high: int, columns: int) -> Iterator[tuple[int, int, int, int]]:
    """Rectangles (row, column, height, width) that tile flat elements [low, high) of a matrix."""
    while low < high:
        row, column = divmod(low, columns)
        if column == 0 and high - low >= columns:
            height, width = (high - low) // columns, columns
        else:
            height, width = 1, min(columns - column, high - low)
        yield row, column, height, width
        low += height * width
