"""A tiny packed SFT in bf16 and fp16, saved and resumed, and the error of one that does not fit."""

import dataclasses
import gc
import math
import os
from pathlib import Path

import numpy as np
import torch
from step_variants import Ablation, Samples, Workload, build_step_job, one_rank

from device_items.context import Context
from device_items.record import Goal
from megatron_chimed.engine import Ranks
from megatron_chimed.errors import ChimedError
from megatron_chimed.observe.timers import Stopwatch
from megatron_chimed.training import state
from megatron_chimed.training.job import Job
from megatron_chimed.training.loop import train_step
from megatron_chimed.training.selftest import check_isolation

STEPS, SAVED_AT = 12, 6
# With deterministic kernels a resumed run repeats the losses to the digit; else to the rounding of
# bf16 and fp16.
EQUAL, ALIKE = Goal(at_most=0.0), Goal(at_most=1e-2)


class PackedSamples(Samples):
    """Two conversations in each sample, each with positions of its own."""

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """The sample's arrays."""
        sample = super().__getitem__(index)
        size = len(sample["tokens"])
        cut = size // 3 + index % 3
        ids = (np.arange(size) >= cut).astype(np.int64)
        positions = np.where(ids == 0, np.arange(size), np.arange(size) - cut)
        return {**sample, "segment_ids": ids, "position_ids": positions}


def run(context: Context) -> None:
    """Both precisions, then the error."""
    # cuBLAS reads it at its first product; without it torch refuses to be deterministic.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    plan = context.plan
    for precision in ("bf16", "fp16"):
        workload = Workload(
            model=plan.tiny_model,
            seq_length=plan.tiny_seq_length,
            batch_size=plan.micro_batch_size,
            precision=precision,
        )
        with one_rank(workload) as ranks:
            try:
                _train_and_resume(context, workload, ranks, deterministic=True)
            except RuntimeError as error:  # torch names an op that is not deterministic on CUDA
                why = f"{type(error).__name__}: {error}"
                context.record.unavailable(f"packed SFT, {precision}, deterministic", why)
                torch.use_deterministic_algorithms(False)
                _train_and_resume(context, workload, ranks, deterministic=False)
            finally:
                torch.use_deterministic_algorithms(False)
    with one_rank(workload) as ranks:
        _run_out_of_memory(context, workload, ranks)


def _train_and_resume(
    context: Context, workload: Workload, ranks: Ranks, *, deterministic: bool
) -> None:
    label = f"packed SFT, {workload.precision}{', deterministic' if deterministic else ''}"
    add, samples = context.record.add, PackedSamples(workload, seed=0, count=4)
    folder = context.folder / label
    job = _job(workload, samples, ranks, folder, deterministic=deterministic)
    check_isolation(job)
    add(f"{label}: segments are isolated", True, goal=Goal(equals=True))
    losses = _train(job, samples, SAVED_AT)
    state.save(job, "device-check")
    losses += _train(job, samples, STEPS - SAVED_AT)
    add(f"{label}: loss of step {STEPS}", losses[-1], goal=Goal(at_most=losses[0]), losses=losses)
    del job
    gc.collect()
    resumed = _job(workload, samples, ranks, folder, deterministic=deterministic)
    said = state.restore(resumed)
    again = _train(resumed, samples, STEPS - SAVED_AT)
    worst = max(abs(a - b) for a, b in zip(losses[SAVED_AT:], again, strict=True))
    worst = worst if math.isfinite(worst) else math.inf
    goal = EQUAL if deterministic else ALIKE
    add(f"{label}: losses after resuming", worst, "difference", goal=goal, said=said)


def _job(
    workload: Workload,
    samples: Samples,
    ranks: Ranks,
    folder: Path,
    *,
    deterministic: bool = False,
) -> Job:
    job = build_step_job(
        workload,
        samples,
        ranks,
        Ablation(),
        output_dir=folder,
        deterministic=deterministic,
    )
    state.draw_weights(job)
    return job


def _train(job: Job, samples: Samples, steps: int) -> list[float]:
    batches = job.batches(samples, consumed=job.progress.consumed_samples, prefetch=0)
    watch = Stopwatch()
    try:
        return [float(train_step(job, next(batches), watch).loss) for _ in range(steps)]
    finally:
        batches.close()


def _run_out_of_memory(context: Context, workload: Workload, ranks: Ranks) -> None:
    """The next large tensor does not fit; what a user would read is kept."""
    large = dataclasses.replace(workload, batch_size=workload.batch_size * 8)
    samples = Samples(large, seed=0, count=16)
    try:
        job = _job(large, samples, ranks, context.folder / "large")
        context.gpu.reset_peak()
        context.gpu.limit_memory(0.0005)
        _train(job, samples, 1)
        found = "no error"
        message = "the batch fitted after all"
    except (torch.OutOfMemoryError, ChimedError) as error:
        found, message = type(error).__name__, str(error)
        goal = Goal(equals=True, needs_gpu=True)
        typed = isinstance(error, ChimedError)
        context.record.add("out of memory: an error of ours", typed, goal=goal)
    context.record.add("out of memory: error", found, message=message[:2000])
