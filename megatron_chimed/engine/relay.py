"""One forward pass handed from pipeline stage to pipeline stage, outside the training schedule.

A training schedule needs the number of micro-batches and their length in advance; generation knows
neither. Here the chunks simply run one after the other, so the other stages wait meanwhile.
"""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist

from megatron_chimed.engine.ranks import Ranks


@torch.no_grad()
def relay_forward(
    chunks: Sequence[torch.nn.Module],
    run: Callable[[torch.nn.Module], torch.Tensor],
    *,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    ranks: Ranks,
) -> torch.Tensor | None:
    """Runs all chunks of the model in pipeline order; every rank of a pipeline calls it.

    Blocking messages between neighbours are enough, since just one chunk computes at a time: two
    stages that are each other's both neighbours (two stages, interleaved) cannot mix them up.

    Args:
        chunks: This rank's chunks, in virtual stage order.
        run: Runs one chunk on what `set_input_tensor` gave it.
        shape: (s, b, h) of the hidden states between stages, whole sequences.
        dtype: Of the hidden states.
        ranks: This rank's place.

    Returns:
        What the last chunk returned, on the rank that has it; None elsewhere.
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

    Ranks that each drew their own would have to agree on every bit of a sum; one draws instead.

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
