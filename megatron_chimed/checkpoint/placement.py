"""Which rank writes which box of which tensor.

A rank announces the boxes it holds. Equal boxes on several ranks are replicas; one rank writes
each, chosen by megatron-core's greedy rule over bytes, so that files come out of equal size. Whole
boxes only: one large replicated tensor stays with one rank. Replica ids are not needed.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from megatron_chimed.checkpoint.index import GlobalTensor, Part, check_tiling, part_file, part_name
from megatron_chimed.checkpoint.safetensors_io import DTYPE_NAMES, DTYPES
from megatron_chimed.engine import TensorSlice
from megatron_chimed.errors import CheckpointError

BoxId = tuple[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class WritePlan:
    """The same on every rank."""

    tensors: Mapping[str, GlobalTensor]
    """The whole checkpoint, as it goes into the index."""
    writers: Mapping[BoxId, int]
    """Writing rank of each (key, offset)."""


def announce(slices: Sequence[TensorSlice]) -> list[list[Any]]:
    """What one rank tells the others about its boxes, as JSON; empty ones are left out."""
    return [
        [
            held.key,
            DTYPE_NAMES[held.tensor.dtype],
            held.global_shape,
            held.offset,
            held.tensor.shape,
        ]
        for held in slices
        if held.tensor.numel()
    ]


def make_plan(announced: Sequence[Sequence[Sequence[Any]]]) -> WritePlan:
    """Assigns a writer to every box; a pure function of what all ranks announced.

    Args:
        announced: `announce` of every rank, in rank order.

    Raises:
        CheckpointError: Ranks disagree about a tensor, or its boxes do not tile it.
    """
    # Imported late: by now the engine has prepared megatron-core.
    from megatron.core.dist_checkpointing.exchange_utils import distribute_shards_to_ranks

    specs: dict[str, tuple[str, tuple[int, ...]]] = {}
    extents: dict[BoxId, tuple[int, ...]] = {}
    holders: dict[BoxId, list[int]] = {}
    for rank, boxes in enumerate(announced):
        for key, dtype, shape, offset, extent in boxes:
            box = (key, tuple(offset))
            _agree(key, specs.setdefault(key, (dtype, tuple(shape))), (dtype, tuple(shape)))
            _agree(key, extents.setdefault(box, tuple(extent)), tuple(extent))
            holders.setdefault(box, []).append(rank)
    sizes = {
        box: math.prod(extent) * DTYPES[specs[box[0]][0]].itemsize
        for box, extent in extents.items()
    }
    writers = distribute_shards_to_ranks(holders, sizes, len(announced), set())

    parts: dict[str, list[Part]] = {key: [] for key in sorted(specs)}
    for (key, offset), extent in sorted(extents.items()):
        file = part_file(writers[key, offset])
        parts[key].append(Part(file, part_name(key, offset), offset, extent))
    for key, held in parts.items():
        check_tiling(key, specs[key][1], [(part.offset, part.shape) for part in held])
    tensors = {
        key: GlobalTensor(DTYPES[specs[key][0]], specs[key][1], tuple(held))
        for key, held in parts.items()
    }
    return WritePlan(tensors, writers)


def _agree(key: str, known: Any, found: Any) -> None:
    if known != found:
        raise CheckpointError(f"{key}: ranks describe it differently, {known} and {found}.")
