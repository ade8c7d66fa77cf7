"""A self-test on the run's own data, before the first step, that packed samples are isolated.

A leak is silent: the loss is a little lower than it should be. It comes from an attention path or a
pipeline stage that ignores the segments, so the test runs the run's own schedule.
"""

import itertools

import torch

from megatron_chimed.engine import Batch, peers_may_fail, run_schedule
from megatron_chimed.errors import KernelError
from megatron_chimed.training.job import Job

MAX_STEPS = 16  # searched for a pack of two: long samples fill their packs alone


def check_isolation(job: Job) -> str | None:
    """Changes the first sample of each pack and compares the losses of the samples behind it.

    Three forward passes over one micro-batch; dropout is off and no random number is drawn. A
    difference as large as between two passes over the same input (none with deterministic kernels)
    is no leak.

    Returns:
        The result in one line, or None if samples are not packed.

    Raises:
        KernelError: The losses differ.
    """
    if "segment_ids" not in job.datasets.train[job.progress.consumed_samples]:
        return None
    micro_batches, behind = _first_packed(job)
    changed = [_change_first(batch, job.config.model.known_vocab_size) for batch in behind]
    for chunk in job.wrapped:
        chunk.eval()
    with peers_may_fail("the self-test of packed samples"):
        first, again, other = (
            run_schedule(job.objective, job.wrapped, given, ranks=job.ranks, forward_only=True)
            for given in (behind, behind, changed)
        )
    for chunk in job.wrapped:
        chunk.train()
    counted = "groups of answers" if "group_ids" in micro_batches[0] else "tokens"
    if first.count == 0:
        return f"self-test: no two samples are packed together in the first {MAX_STEPS} steps"
    if abs(other.loss_sum - first.loss_sum) > abs(again.loss_sum - first.loss_sum):
        raise KernelError(
            f"packed samples leak into each other: the loss of {first.count} {counted} went from "
            f"{first.loss_sum!r} to {other.loss_sum!r} when only tokens of other samples in their "
            "packs changed. Attention ignores segment_ids on this machine; set "
            "--model.attention_backend reference, and please report it."
        )
    return (
        f"self-test: {first.count} {counted} keep their loss, {first.loss:.4f}, to the last bit "
        "when the samples packed with them change"
    )


def _first_packed(job: Job) -> tuple[list[Batch], list[Batch]]:
    """This rank's next micro-batches that hold a sample behind another; if none, the last ones.

    Returns:
        The micro-batches as they are, and with only such samples scored.
    """
    layout = job.ranks.layout
    interleaved = layout.virtual_pipeline_parallel_size > 1
    # An interleaved schedule needs a multiple of the number of stages.
    size = layout.pipeline_parallel_size if interleaved else 1
    batches = job.batches(job.datasets.train, consumed=job.progress.consumed_samples, prefetch=0)
    chosen: list[Batch] = []
    behind: list[Batch] = []
    try:
        for step in itertools.islice(batches, MAX_STEPS):
            for first in range(0, len(step), size):
                chosen = step[first : first + size]
                behind = [_score_behind_first(batch) for batch in chosen]
                if any(_is_scored(batch) for batch in behind):
                    return chosen, behind
    finally:
        batches.close()
    return chosen, behind


def _is_scored(batch: Batch) -> bool:
    scored = batch["ranks"] >= 0 if "ranks" in batch else batch["loss_mask"] > 0
    return bool(scored.any())


def _score_behind_first(batch: Batch) -> Batch:
    """The micro-batch with only the samples scored that are not the first of their pack."""
    is_first = _is_first(batch)
    masked = {"loss_mask": batch["loss_mask"] * ~is_first}
    if "ranks" in batch:
        masked["ranks"] = batch["ranks"].masked_fill(is_first, -1)
    return {**batch, **masked}


def _change_first(batch: Batch, vocab_size: int) -> Batch:
    tokens = batch["tokens"]
    return {**batch, "tokens": torch.where(_is_first(batch), (tokens + 1) % vocab_size, tokens)}


def _is_first(batch: Batch) -> torch.Tensor:
    """Mask [b, s] of the first sample of each pack: for candidates, of the first group."""
    segments = batch.get("group_ids", batch["segment_ids"])  # [b, s]
    return segments == segments[:, :1]
