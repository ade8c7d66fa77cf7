"""One forward pass through all pipeline stages, outside the training schedules.

A training schedule needs the number of micro-batches and their length in advance; generation knows
neither. Here the chunks run one after the other, and the other stages wait.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist

from megatron_chimed.engine.ranks import Ranks


class ModelChunk(Protocol):
    """A chunk of a model that takes the hidden states of the previous stage."""

    def set_input_tensor(self, tensors: list[Any], /) -> None:
        """Takes the hidden states [s(/t), b, h] that the previous stage sent."""
        ...


Chunk = TypeVar("Chunk", bound=ModelChunk)


@torch.no_grad()
def relay_forward(
    chunks: Sequence[Chunk],
    run: Callable[[Chunk], torch.Tensor],
    *,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    ranks: Ranks,
) -> torch.Tensor | None:
    """Runs all chunks of the model in pipeline order; every rank of a pipeline calls it.

    Blocking messages between neighbours are enough, since only one chunk computes at a time: two
    interleaved stages, each of which is the other's next and previous, cannot confuse them.

    Args:
        chunks: This rank's chunks, in virtual stage order.
        run: Runs one chunk, whose input was set by `set_input_tensor`.
        shape: (s, b, h) of the hidden states between stages, whole sequences.
        dtype: Of the hidden states.
        ranks: This rank's place.

    Returns:
        Output of the last chunk on the rank that has it; None elsewhere.
    """
    stages = ranks.layout.pipeline_parallel_size
    last = stages * ranks.layout.virtual_pipeline_parallel_size - 1
    ring = dist.get_process_group_ranks(ranks.pipeline_group)
    for virtual_stage, chunk in enumerate(chunks):
        place = virtual_stage * stages + ranks.pipeline_rank
        if place > 0:
            hidden = torch.empty(shape, dtype=dtype, device=ranks.device)
            dist.recv(hidden, src=ring[(place - 1) % stages], group=ranks.pipeline_group)
            chunk.set_input_tensor([hidden])
        output = run(chunk)
        if place == last:
            return output
        dist.send(output.contiguous(), dst=ring[(place + 1) % stages], group=ranks.pipeline_group)
    return None


def share_decision(decision: torch.Tensor, ranks: Ranks) -> None:
    """Gives one tensor-parallel rank's decision on the last stage to every rank of the replica.

    If each rank drew its own, all would have to agree on every bit of a sum; so only one draws.

    Args:
        decision: Read on tensor rank 0 of the last stage, written in place on the others; the same
            shape and dtype everywhere.
        ranks: This rank's place.
    """
    if ranks.is_last_stage and ranks.layout.tensor_parallel_size > 1:
        source = dist.get_process_group_ranks(ranks.tensor_group)[0]
        dist.broadcast(decision, src=source, group=ranks.tensor_group)
    if ranks.layout.pipeline_parallel_size > 1:
        dist.broadcast(decision, src=ranks.last_stage_rank, group=ranks.pipeline_group)
