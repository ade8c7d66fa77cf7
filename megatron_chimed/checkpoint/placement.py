"""Which rank writes which shard of which tensor.

Every rank describes the shards it holds. Equal shards on several ranks are replicas, which need no
ids: one rank writes each, chosen by megatron-core's greedy rule over bytes, so that files have
equal sizes. Shards are not cut: a large replicated tensor is written by one rank.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from megatron_chimed.checkpoint.index import (
    GlobalTensor,
    StoredShard,
    check_tiling,
    shard_file,
    shard_name,
)
from megatron_chimed.checkpoint.safetensors_io import DTYPE_NAMES, DTYPES
from megatron_chimed.engine import TensorShard
from megatron_chimed.errors import CheckpointError

ShardId = tuple[str, tuple[int, ...]]
"""Key and offset."""


@dataclasses.dataclass(frozen=True)
class WritePlan:
    """The same on every rank."""

    tensors: Mapping[str, GlobalTensor]
    """All tensors of the checkpoint, for its index."""
    writers: Mapping[ShardId, int]
    """The rank that writes each shard."""


def describe_shards(shards: Sequence[TensorShard]) -> list[list[Any]]:
    """What one rank tells the others about its shards, as JSON; empty ones are left out."""
    return [
        [
            shard.key,
            DTYPE_NAMES[shard.tensor.dtype],
            shard.global_shape,
            shard.offset,
            shard.tensor.shape,
        ]
        for shard in shards
        if shard.tensor.numel()
    ]


def plan_writes(described: Sequence[Sequence[Sequence[Any]]]) -> WritePlan:
    """Assigns a writer to every shard; a pure function of what all ranks described.

    Args:
        described: `describe_shards` of every rank, in rank order.

    Raises:
        CheckpointError: Ranks disagree about a tensor, or its shards do not tile it.
    """
    # Imported late: by now the engine has prepared megatron-core.
    from megatron.core.dist_checkpointing.exchange_utils import distribute_shards_to_ranks

    specs: dict[str, tuple[str, tuple[int, ...]]] = {}
    extents: dict[ShardId, tuple[int, ...]] = {}
    holders: dict[ShardId, list[int]] = {}
    for rank, shards in enumerate(described):
        for key, dtype, shape, offset, extent in shards:
            shard = (key, tuple(offset))
            _agree(key, specs.setdefault(key, (dtype, tuple(shape))), (dtype, tuple(shape)))
            _agree(key, extents.setdefault(shard, tuple(extent)), tuple(extent))
            holders.setdefault(shard, []).append(rank)
    sizes = {
        shard: math.prod(extent) * DTYPES[specs[shard[0]][0]].itemsize
        for shard, extent in extents.items()
    }
    writers = distribute_shards_to_ranks(holders, sizes, len(described), set())

    stored: dict[str, list[StoredShard]] = {key: [] for key in sorted(specs)}
    for (key, offset), extent in sorted(extents.items()):
        file = shard_file(writers[key, offset])
        stored[key].append(StoredShard(file, shard_name(key, offset), offset, extent))
    for key, shards in stored.items():
        check_tiling(key, specs[key][1], [shard.region for shard in shards])
    tensors = {
        key: GlobalTensor(DTYPES[specs[key][0]], specs[key][1], tuple(shards))
        for key, shards in stored.items()
    }
    return WritePlan(tensors, writers)


def _agree(key: str, known: Any, found: Any) -> None:
    if known != found:
        raise CheckpointError(f"{key}: ranks describe it differently, {known} and {found}.")
