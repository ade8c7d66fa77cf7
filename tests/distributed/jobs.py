"""Tiny training jobs that the distributed tests run on gloo ranks.

The model has grouped-query heads, a vocabulary that needs padding, and ragged loss masks, so that a
wrong division or a leaking padding row shows.
"""

import contextlib
import dataclasses
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist

from megatron_chimed import engine
from megatron_chimed.config.checkpoint import CheckpointConfig
from megatron_chimed.config.kernels import KernelConfig
from megatron_chimed.config.optim import OptimConfig
from megatron_chimed.config.training import TrainConfig
from megatron_chimed.data.datasets.blend import SampleSource
from megatron_chimed.data.datasets.config import Datasets
from megatron_chimed.errors import InterruptError, ParallelError
from megatron_chimed.model import LoraConfig, ModelConfig, TokenLoss, shard_specs
from megatron_chimed.observe.logger import LogConfig
from megatron_chimed.training import loop, state
from megatron_chimed.training.job import Job, JobConfig, build_job
from megatron_chimed.training.objectives.base import TrainingObjective
from megatron_chimed.training.objectives.next_token import NextTokenObjective

VOCAB_SIZE, SEQ_LENGTH, GLOBAL_BATCH_SIZE = 300, 32, 8
MODEL = ModelConfig(
    vocab_size=VOCAB_SIZE,
    hidden_size=64,
    num_layers=4,
    num_attention_heads=8,
    num_key_value_heads=4,
    ffn_hidden_size=96,
    max_position_embeddings=64,
    # At 0.02 a model this narrow has gradients near Adam's eps, whose rounding noise Adam scales to
    # full steps: layouts would drift apart for no fault of theirs.
    init_std=0.05,
)

# Adam's default eps of 1e-8 turns the rounding noise of single near-zero gradients into full steps,
# in plain torch as in the fused ops: two layouts were up to 1.5e-5 apart on a processor with AVX2
# alone. At 1e-6 they stay within 2.3e-6, where a fault of a layout would stand out by far.
OPTIM = {
    "lr": 1e-3,
    "min_lr": 1e-3,
    "lr_schedule": "constant",
    "warmup_steps": 0,
    "adam_eps": 1e-6,
}

ONE = {}
TP2 = {"tensor_parallel_size": 2}
TP2_SP = {**TP2, "sequence_parallel": True}
PP2 = {"pipeline_parallel_size": 2}
PP2_VPP2 = {**PP2, "virtual_pipeline_parallel_size": 2}
DP2_DISTRIBUTED = {"distributed_optimizer": True}


def world_size(parallel: dict[str, Any], data_parallel_size: int = 1) -> int:
    """Ranks of a layout."""
    return (
        parallel.get("tensor_parallel_size", 1)
        * parallel.get("pipeline_parallel_size", 1)
        * data_parallel_size
    )


class RandomSamples:
    """Samples that are a pure function of their number, with ragged loss masks."""

    samples_per_epoch = 24

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """The sample's arrays."""
        generator = np.random.default_rng(index)
        # Squares make low ids frequent: something to learn.
        tokens = generator.integers(0, VOCAB_SIZE, SEQ_LENGTH + 1) ** 2 // VOCAB_SIZE
        return {
            "tokens": tokens[:-1],
            "labels": tokens[1:],
            "loss_mask": (generator.random(SEQ_LENGTH) < 0.7).astype(np.float32),
            "position_ids": np.arange(SEQ_LENGTH),
        }

    def locate(self, index: int) -> str:
        """Names the sample."""
        return f"random sample {index}"


def make_layout(
    config: ModelConfig, parallel: dict[str, Any], world_size: int
) -> engine.ParallelLayout:
    """The checked layout of a `parallel` section."""
    return engine.plan_layout(
        engine.ParallelConfig(**{"timeout_seconds": 60, **parallel}),
        world_size=world_size,
        sizes=config.sizes(SEQ_LENGTH),
    )


def make_job(  # long: one argument for each thing that a test varies
    rank: int,
    world_size: int,
    store_path: str,
    *,
    parallel: dict[str, Any],
    output_dir: str = "unused",
    model: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    checkpoint: dict[str, Any] | None = None,
    optim: dict[str, Any] | None = None,
    lora: dict[str, Any] | None = None,
    backend: str = "auto",
    samples: SampleSource | None = None,
    sources: tuple[str, ...] = (),
    make_objective: Callable[[TokenLoss], TrainingObjective] | None = None,
) -> Job:
    """Joins and builds a job on this rank; `engine.leave()` ends it."""
    config = dataclasses.replace(MODEL, **(model or {}))
    layout = make_layout(config, parallel, world_size)
    store = dist.FileStore(store_path, world_size)
    ranks = engine.join(layout, rank=rank, local_rank=rank, store=store)
    arguments = {
        "train_steps": 20,
        "micro_batch_size": 2,
        "global_batch_size": GLOBAL_BATCH_SIZE,
        "precision": "fp32",
        **(training or {}),
    }
    train_config = TrainConfig(**arguments)
    lora_config = LoraConfig(**(lora or {}))
    job_config = JobConfig(
        model=config,
        optim=OptimConfig(**{**OPTIM, **(optim or {})}),
        training=train_config,
        checkpoint=CheckpointConfig(**(checkpoint or {})),
        logging=LogConfig(progress="off", tensorboard=False),
        kernels=KernelConfig(backend=backend),
        seq_length=SEQ_LENGTH,
        prefetch=0,
        output_dir=Path(output_dir),
        resolved={
            "model": dataclasses.asdict(config),
            "training": {"seed": train_config.seed},
            "lora": dataclasses.asdict(lora_config),
        },
        tokenizer_identity="none",
        tokenizer_files={},
        lora=lora_config,
    )
    samples = samples or RandomSamples()
    datasets = Datasets(train=samples, valid=samples, test=None, order={}, sources=sources)
    token_loss = TokenLoss(config, group=ranks.tensor_group, kernels=job_config.kernels.ops())
    make_objective = make_objective or partial(NextTokenObjective, sources=sources)
    job = build_job(job_config, make_objective(token_loss), datasets, ranks)
    state.draw_weights(job)
    return job


def gradients(job: Job) -> list[tuple[str, tuple, tuple, np.ndarray]]:
    """This rank's shards of the reduced gradient: (key, global shape, offset, values)."""
    found = []
    for parameter, specs in shard_specs(job.chunks).items():
        if not parameter.requires_grad:
            continue
        gradient = parameter.main_grad
        main, start = job.optimizer._master_weight(parameter)
        if main is None:
            continue
        if start is None:
            shards = engine.row_shards(specs, gradient)
        else:  # only this rank's shard is reduced
            flat = gradient.view(-1)[start : start + main.numel()]
            shards = engine.flat_shards(specs, gradient.shape, flat, start=start)
        found += [(b.key, b.global_shape, b.offset, b.tensor.cpu().numpy().copy()) for b in shards]
    return found


def padding_is_zero(job: Job) -> bool:
    """Whether rows beyond the true vocabulary are zero in weights and moments."""
    for parameter, specs in shard_specs(job.chunks).items():
        used = sum(spec.rows for spec in specs)
        held = [parameter, *([parameter.main_grad] if parameter.requires_grad else [])]
        if any(tensor[used:].any() for tensor in held):
            return False
    return True


def trace(
    rank: int, world_size: int, store_path: str, *, steps: int = 20, look_at: tuple = (), **options
) -> dict[str, Any]:
    """Trains and returns losses and gradient norms, and gradients of the steps in `look_at`."""
    job = make_job(rank, world_size, store_path, **options)
    try:
        batches = job.batches(job.datasets.train, consumed=0, prefetch=0)
        result = {"losses": [], "norms": [], "scales": [], "gradients": {}}
        for step in range(1, steps + 1):
            job.optimizer.zero_grad()
            totals = engine.run_schedule(job.objective, job.wrapped, next(batches), ranks=job.ranks)
            if step in look_at:
                result["gradients"][step] = gradients(job)
            update = job.optimizer.update(learning_rate=1e-3)
            result["norms"].append(update.grad_norm)
            result["scales"].append(update.loss_scale)
            result["losses"].append(totals.loss)
        engine.synchronize_parameters(job.wrapped)
        result["padding_is_zero"] = padding_is_zero(job)
        return result
    finally:
        engine.leave()


def run(rank: int, world_size: int, store_path: str, **options) -> list[dict[str, Any]]:
    """Runs the product's loop, saving as its configuration says; returns the logged steps."""
    job = make_job(rank, world_size, store_path, **options)
    records: list[dict[str, Any]] = []
    try:
        with _logger(records.append):
            loop.train(job, run_id="test", starts_from=state.restore(job))
    finally:
        engine.leave()
    return records


@contextlib.contextmanager
def _logger(on_step: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Calls `on_step` with each logged step; draws no plots, which take 0.3 CPU-seconds a run."""
    original = loop.RunLogger.step

    def step(self: Any, record: Any) -> None:
        on_step(dataclasses.asdict(record))
        original(self, record)

    with (
        mock.patch.object(loop.RunLogger, "step", step),
        mock.patch.object(loop.RunLogger, "_draw", lambda _: None),
    ):
        yield


def run_preempted(
    rank: int,
    world_size: int,
    store_path: str,
    *,
    at_step: int,
    number: int = signal.SIGTERM,
    **options,
) -> tuple[str, list[dict[str, Any]]]:
    """As `run`, but the last rank gets a signal in a step; returns the error's message too."""
    records: list[dict[str, Any]] = []

    def remember(record: dict[str, Any]) -> None:
        records.append(record)
        if rank == world_size - 1 and record["step"] == at_step:
            os.kill(os.getpid(), number)

    try:
        job = make_job(rank, world_size, store_path, **options)
        with _logger(remember):
            loop.train(job, run_id="test", starts_from=state.restore(job))
        return "", records
    except (ParallelError, InterruptError) as error:
        return str(error), records
    finally:
        engine.leave()


def load_and_save(rank: int, world_size: int, store_path: str, *, source: str, **options) -> str:
    """Resumes `source` at some layout and saves it again at once, elsewhere."""
    job = make_job(rank, world_size, store_path, **options)
    try:
        from megatron_chimed.checkpoint.reader import open_checkpoint

        state._resume(job, open_checkpoint(source, agreement=job.agreement))
        return str(state.save(job, "again"))
    finally:
        engine.leave()


def assemble(per_rank: list[list]) -> dict[str, np.ndarray]:
    """Global tensors from the shards of all ranks; equal shards must hold equal values."""
    tensors: dict[str, np.ndarray] = {}
    for shards in per_rank:
        for key, shape, offset, values in shards:
            whole = tensors.setdefault(key, np.full(shape, np.nan, np.float32))
            where = tuple(slice(o, o + n) for o, n in zip(offset, values.shape, strict=True))
            held = whole[where]
            assert np.isnan(held).all() or np.array_equal(held, values), f"{key} differs"
            whole[where] = values
    assert not any(np.isnan(tensor).any() for tensor in tensors.values()), "holes"
    return tensors


def torch_tensors(directory: str) -> dict[str, torch.Tensor]:
    """Every global tensor of a checkpoint."""
    from megatron_chimed.checkpoint.reader import CheckpointReader

    reader = CheckpointReader(directory)
    return {key: reader.read(key) for key in reader.tensors}
