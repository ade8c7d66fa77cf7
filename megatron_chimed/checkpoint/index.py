"""`index.json`: which shards make up every global tensor, and in which file each is stored.

A region is (offset, shape) in a global tensor. The shards of a tensor must tile it: no two overlap
and their elements add up. The sum alone would miss an overlap beside a hole of equal size.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from megatron_chimed.checkpoint.safetensors_io import DTYPE_NAMES, DTYPES
from megatron_chimed.errors import CheckpointError

Region = tuple[tuple[int, ...], tuple[int, ...]]
INDEX_VERSION = 1
MOMENT_PREFIXES = ("exp_avg.", "exp_avg_sq.")
"""Before the keys of Adam's moments."""
MASTER_PREFIX = "master."
"""Before the keys of fp32 master weights, which exist where weights are not fp32."""


@dataclasses.dataclass(frozen=True)
class StoredShard:
    """A shard of a global tensor in a file."""

    file: str
    """Path relative to the checkpoint."""
    name: str
    """Name of the tensor in that file."""
    offset: tuple[int, ...]
    """First element of the shard in the global tensor."""
    shape: tuple[int, ...]

    @property
    def region(self) -> Region:
        """Where it belongs in the global tensor."""
        return self.offset, self.shape


@dataclasses.dataclass(frozen=True)
class GlobalTensor:
    """A whole tensor and its shards."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    shards: tuple[StoredShard, ...]

    @property
    def size(self) -> int:
        """Bytes of the whole tensor."""
        return math.prod(self.shape) * self.dtype.itemsize


def shard_file(index: int) -> str:
    """Name of a file of shards; in a saved checkpoint, `index` is the rank that wrote it."""
    return f"rank_{index:05d}.safetensors"


def shard_name(key: str, offset: tuple[int, ...]) -> str:
    """Name of a shard in its file, which may hold several shards of one key."""
    return f"{key}@{'.'.join(map(str, offset))}"


def intersect(first: Region, second: Region) -> Region | None:
    """What two regions have in common, or None where they share no element."""
    (start_a, shape_a), (start_b, shape_b) = first, second
    offset = tuple(map(max, start_a, start_b))
    stop = (
        min(a + n, b + m) for a, n, b, m in zip(start_a, shape_a, start_b, shape_b, strict=True)
    )
    shape = tuple(end - begin for begin, end in zip(offset, stop, strict=True))
    return (offset, shape) if all(extent > 0 for extent in shape) else None


def slices_within(outer_offset: tuple[int, ...], region: Region) -> tuple[slice, ...]:
    """Index of `region` in a tensor whose first element is at `outer_offset`."""
    return tuple(
        slice(start - outer, start - outer + extent)
        for outer, start, extent in zip(outer_offset, *region, strict=True)
    )


def check_tiling(key: str, shape: tuple[int, ...], regions: Iterable[Region]) -> None:
    """Raises CheckpointError unless `regions` tile a tensor of `shape` exactly."""
    regions = sorted(regions)
    for offset, extent in regions:
        inside = len(offset) == len(extent) == len(shape) and all(
            0 <= start and 0 <= count and start + count <= whole
            for start, count, whole in zip(offset, extent, shape, strict=True)
        )
        if not inside:
            raise CheckpointError(f"{key}: shard {offset}+{extent} exceeds the shape {shape}.")
    for at, first in enumerate(regions):
        for second in itertools.islice(regions, at + 1, None):
            if shape and second[0][0] >= first[0][0] + first[1][0]:
                break  # sorted: no later region starts within the rows of the first
            if intersect(first, second):
                raise CheckpointError(
                    f"{key}: shards {first} and {second} (offset, shape) overlap."
                )
    covered = sum(math.prod(extent) for _, extent in regions)
    if covered != math.prod(shape):
        raise CheckpointError(
            f"{key}: the shards hold {covered} of {math.prod(shape)} elements of shape {shape}."
        )


def encode_index(tensors: Mapping[str, GlobalTensor]) -> dict[str, Any]:
    """The JSON value of `index.json`, in which shards are called parts."""
    return {
        "version": INDEX_VERSION,
        "tensors": {
            key: {
                "dtype": DTYPE_NAMES[tensor.dtype],
                "shape": tensor.shape,
                "parts": [dataclasses.asdict(shard) for shard in tensor.shards],
            }
            for key, tensor in tensors.items()
        },
    }


def decode_index(value: dict[str, Any]) -> dict[str, GlobalTensor]:
    """The inverse of `encode_index`; checks that the shards of each tensor tile it.

    Raises:
        CheckpointError: Holes, overlaps, or an index of another version.
    """
    if value["version"] != INDEX_VERSION:
        raise CheckpointError(f"index.json has version {value['version']}, not {INDEX_VERSION}.")
    tensors = {}
    for key, entry in value["tensors"].items():
        shards = tuple(
            StoredShard(part["file"], part["name"], tuple(part["offset"]), tuple(part["shape"]))
            for part in entry["parts"]
        )
        tensor = GlobalTensor(DTYPES[entry["dtype"]], tuple(entry["shape"]), shards)
        check_tiling(key, tensor.shape, [shard.region for shard in shards])
        tensors[key] = tensor
    return tensors
