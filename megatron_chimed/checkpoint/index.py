"""`index.json`: where in which file every part of every global tensor lies.

A box is (offset, shape) in a global tensor. The parts of a tensor must tile it: no two overlap and
their elements add up. The sum alone would miss an overlap beside a hole of equal size.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from megatron_chimed.checkpoint.safetensors_io import DTYPE_NAMES, DTYPES
from megatron_chimed.errors import CheckpointError

Box = tuple[tuple[int, ...], tuple[int, ...]]
INDEX_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Part:
    """One stored box of a global tensor."""

    file: str
    """Path relative to the checkpoint."""
    name: str
    """Name of the tensor in that file."""
    offset: tuple[int, ...]
    """First element of the box."""
    shape: tuple[int, ...]
    """Extent of the box."""


@dataclasses.dataclass(frozen=True)
class GlobalTensor:
    """A whole tensor and the parts that make it up."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    parts: tuple[Part, ...]

    @property
    def size(self) -> int:
        """Bytes of the whole tensor."""
        return math.prod(self.shape) * self.dtype.itemsize


def part_file(number: int) -> str:
    """Name of a file of parts; of a save, `number` is the rank that wrote it."""
    return f"rank_{number:05d}.safetensors"


def part_name(key: str, offset: tuple[int, ...]) -> str:
    """Name of a part inside its file: the key alone would lose the second part of a key there."""
    return f"{key}@{'.'.join(map(str, offset))}"


def intersect(first: Box, second: Box) -> Box | None:
    """The common box of two, or None where they share no element."""
    (start_a, shape_a), (start_b, shape_b) = first, second
    offset = tuple(map(max, start_a, start_b))
    stop = (
        min(a + n, b + m) for a, n, b, m in zip(start_a, shape_a, start_b, shape_b, strict=True)
    )
    shape = tuple(end - begin for begin, end in zip(offset, stop, strict=True))
    return (offset, shape) if all(extent > 0 for extent in shape) else None


def slices_within(outer_offset: tuple[int, ...], box: Box) -> tuple[slice, ...]:
    """Index of `box` in a tensor whose first element lies at `outer_offset`."""
    return tuple(
        slice(start - outer, start - outer + extent)
        for outer, start, extent in zip(outer_offset, *box, strict=True)
    )


def check_tiling(key: str, shape: tuple[int, ...], boxes: Iterable[Box]) -> None:
    """Raises CheckpointError unless `boxes` tile a tensor of `shape` exactly."""
    boxes = list(boxes)
    for offset, extent in boxes:
        inside = len(offset) == len(extent) == len(shape) and all(
            0 <= start and 0 <= count and start + count <= whole
            for start, count, whole in zip(offset, extent, shape, strict=True)
        )
        if not inside:
            raise CheckpointError(f"{key}: part {offset}+{extent} leaves the shape {shape}.")
    boxes.sort()
    for at, first in enumerate(boxes):
        for second in itertools.islice(boxes, at + 1, None):
            if shape and second[0][0] >= first[0][0] + first[1][0]:
                break  # sorted: no later box starts within the rows of the first
            if intersect(first, second):
                raise CheckpointError(f"{key}: parts {first} and {second} (offset, shape) overlap.")
    covered = sum(math.prod(extent) for _, extent in boxes)
    if covered != math.prod(shape):
        raise CheckpointError(
            f"{key}: the parts hold {covered} of {math.prod(shape)} elements of shape {shape}."
        )


def encode_index(tensors: Mapping[str, GlobalTensor]) -> dict[str, Any]:
    """The JSON value of `index.json`."""
    return {
        "version": INDEX_VERSION,
        "tensors": {
            key: {
                "dtype": DTYPE_NAMES[tensor.dtype],
                "shape": tensor.shape,
                "parts": [dataclasses.asdict(part) for part in tensor.parts],
            }
            for key, tensor in tensors.items()
        },
    }


def decode_index(value: dict[str, Any]) -> dict[str, GlobalTensor]:
    """The inverse of `encode_index`; checks that each tensor is tiled by its parts.

    Raises:
        CheckpointError: Holes, overlaps, or an index of another version.
    """
    if value["version"] != INDEX_VERSION:
        raise CheckpointError(f"index.json has version {value['version']}, not {INDEX_VERSION}.")
    tensors = {}
    for key, entry in value["tensors"].items():
        parts = tuple(
            Part(part["file"], part["name"], tuple(part["offset"]), tuple(part["shape"]))
            for part in entry["parts"]
        )
        tensor = GlobalTensor(DTYPES[entry["dtype"]], tuple(entry["shape"]), parts)
        check_tiling(key, tensor.shape, [(part.offset, part.shape) for part in parts])
        tensors[key] = tensor
    return tensors
