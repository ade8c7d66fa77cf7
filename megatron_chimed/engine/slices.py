"""How a rank's memory maps to the tensors of the whole model.

A parameter holds one or more *pieces* of named global tensors (a fused QKV weight holds three).
From the pieces follow the boxes of the weight itself, of its Adam moments, and of a flat shard of
either, as the distributed optimizer keeps them. Checkpoints, initialisation and conversion all work
on these boxes, so no other part knows how a tensor is cut.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Rows of a local parameter that hold a box of one global tensor."""

    key: str
    """Name of the global tensor: the Hugging Face name."""
    global_shape: tuple[int, ...]
    """True shape; the padding of a vocabulary is not part of it."""
    offset: tuple[int, ...]
    """Where the box starts in the global tensor."""
    first_row: int
    """Where the box starts in the parameter's dimension 0."""
    rows: int
    """Rows of the parameter that belong to the box; padding rows are left out."""


@dataclass(frozen=True, kw_only=True)
class TensorSlice:
    """A box of a global tensor and the memory that holds it here."""

    key: str
    """Name of the global tensor."""
    global_shape: tuple[int, ...]
    """Shape of the global tensor."""
    offset: tuple[int, ...]
    """Where the box starts in the global tensor."""
    tensor: torch.Tensor
    """A view of live memory, any strides; its shape is the box's."""


def row_slices(
    pieces: Sequence[Piece], local: torch.Tensor, *, prefix: str = ""
) -> Iterator[TensorSlice]:
    """The slices of a tensor that has the parameter's own shape.

    Args:
        pieces: What the parameter holds.
        local: The parameter, or a moment of the same shape.
        prefix: Put before each key, for example `exp_avg.`.
    """
    for piece in pieces:
        if piece.rows > 0:
            yield TensorSlice(
                key=prefix + piece.key,
                global_shape=piece.global_shape,
                offset=piece.offset,
                tensor=local.detach().narrow(0, piece.first_row, piece.rows),
            )


def flat_slices(
    pieces: Sequence[Piece],
    local_shape: Sequence[int],
    flat: torch.Tensor,
    *,
    start: int,
    prefix: str = "",
) -> Iterator[TensorSlice]:
    """The slices of a flat shard: elements [start, start + len(flat)) of the flattened parameter.

    A range of a row-major matrix is at most three boxes (the end of a row, full rows, the start of
    a row), so a shard of any cut is written and read without gathering its parameter.

    Args:
        pieces: What the parameter holds.
        local_shape: Shape of the parameter, one or two dimensions.
        flat: One-dimensional memory of the shard.
        start: Position of the shard's first element in the flattened parameter.
        prefix: Put before each key.
    """
    columns = math.prod(local_shape[1:])
    for piece in pieces:
        low = max(start, piece.first_row * columns)
        high = min(start + flat.numel(), (piece.first_row + piece.rows) * columns)
        base = piece.first_row * columns
        for row, column, height, width in _range_boxes(low - base, high - base, columns):
            begin = base + row * columns + column - start
            box = flat.detach().narrow(0, begin, height * width)
            place = (row, column)[: len(local_shape)]
            yield TensorSlice(
                key=prefix + piece.key,
                global_shape=piece.global_shape,
                offset=tuple(o + p for o, p in zip(piece.offset, place, strict=True)),
                tensor=box.view((height, width)[: len(local_shape)]),
            )


def _range_boxes(low: int, high: int, columns: int) -> Iterator[tuple[int, int, int, int]]:
    """Boxes (row, column, height, width) that tile flat elements [low, high) of a matrix."""
    while low < high:
        row, column = divmod(low, columns)
        if column == 0 and high - low >= columns:
            height, width = (high - low) // columns, columns
        else:
            height, width = 1, min(columns - column, high - low)
        yield row, column, height, width
        low += height * width
