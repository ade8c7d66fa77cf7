"""One training job on this rank: everything that is built before the first step."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from megatron_chimed.config.checkpoint import CheckpointConfig
from megatron_chimed.config.kernels import KernelConfig
from megatron_chimed.config.optim import OptimConfig
from megatron_chimed.config.training import TrainConfig
from megatron_chimed.data.datasets.blend import SampleSource
from megatron_chimed.data.datasets.config import Datasets
from megatron_chimed.data.datasets.loader import iterate_batches
from megatron_chimed.data.datasets.sampler import MicroBatchSampler
from megatron_chimed.data.templates import Template
from megatron_chimed.engine import (
    Batch,
    Optimizer,
    Ranks,
    TensorShard,
    WrappedChunk,
    engine_settings,
    make_trainable,
    seed_ranks,
)
from megatron_chimed.engine.agreement import Agreement
from megatron_chimed.engine.device import require_workspace
from megatron_chimed.model import (
    LoraConfig,
    ModelConfig,
    Transformer,
    build_chunks,
    shard_specs,
    weight_shards,
)
from megatron_chimed.observe.logger import LogConfig
from megatron_chimed.training.objectives.base import TrainingObjective
from megatron_chimed.training.samples import SamplePrompts

Steps = Generator[list[Batch], None, None]
"""The micro-batches of each step."""


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """The sections of a run's configuration that training reads."""

    model: ModelConfig
    optim: OptimConfig
    training: TrainConfig
    checkpoint: CheckpointConfig
    logging: LogConfig
    kernels: KernelConfig
    seq_length: int
    prefetch: int
    output_dir: Path
    resolved: dict[str, Any]
    """The full configuration as plain values: stored in checkpoints, compared on resume."""
    tokenizer_identity: str
    tokenizer_files: dict[str, bytes]
    """Stored in checkpoints, so that a model never loses its tokenizer."""
    lora: LoraConfig = LoraConfig()
    """With rank 0, all weights are trained."""
    samples: SamplePrompts | None = None
    """Prompts answered at each validation; None: none."""
    template: Template | None = None
    """The chat template that loaded weights must have been trained with; None: any."""


@dataclass
class TrainingProgress:
    """How far a run is; the only mutable part of a job besides its tensors."""

    step: int = 0
    """Optimizer steps done."""
    consumed_samples: int = 0
    """Training samples read."""
    best_valid_loss: float | None = None
    """Lowest validation loss so far."""
    best_step: int | None = None
    """The step that reached it."""
    validations_since_best: int = 0
    """Validations since then."""
    validation_due: bool = False
    """The run was asked to stop while it validated this step; a resumed run validates first."""
    skipped_in_a_row: int = 0
    """fp16: consecutive overflowing steps, which changed no weight."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that the loop needs."""

    config: JobConfig
    objective: TrainingObjective
    datasets: Datasets
    ranks: Ranks
    agreement: Agreement
    chunks: Sequence[Transformer]
    wrapped: Sequence[WrappedChunk]
    """The same chunks, wrapped for gradient reduction."""
    optimizer: Optimizer
    progress: TrainingProgress = field(default_factory=TrainingProgress)

    @property
    def is_writer(self) -> bool:
        """Whether this rank reports: one that holds the loss."""
        ranks = self.ranks
        return ranks.is_last_stage and ranks.tensor_rank == 0 and ranks.data_rank == 0

    def shards(self) -> list[TensorShard]:
        """Every shard of weights and optimizer state that this rank holds."""
        specs = shard_specs(self.chunks)
        return [*weight_shards(self.chunks), *self.optimizer.shards(specs)]

    def batches(self, dataset: SampleSource, *, consumed: int, prefetch: int) -> Steps:
        """This rank's micro-batches of each step, as tensors on its device; to be closed."""
        training = self.config.training
        sampler = MicroBatchSampler(
            consumed_samples=consumed,
            global_batch_size=training.global_batch_size,
            micro_batch_size=training.micro_batch_size,
            data_parallel_rank=self.ranks.data_rank,
            data_parallel_size=self.ranks.layout.data_parallel_size,
        )
        loaded = iterate_batches(
            dataset, sampler, vocab_size=self.config.model.known_vocab_size, prefetch=prefetch
        )
        try:
            for step in loaded:
                yield [self._to_device(batch) for batch in step]
        finally:
            loaded.close()

    def _to_device(self, batch: dict) -> Batch:
        tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
        if self.ranks.device.type == "cuda":
            # From pageable memory the copy would wait for the device in spite of non_blocking.
            tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
        return {name: x.to(self.ranks.device, non_blocking=True) for name, x in tensors.items()}


def build_job(
    config: JobConfig, objective: TrainingObjective, datasets: Datasets, ranks: Ranks
) -> Job:
    """Builds model and optimizer with all weights zero; `state.restore` sets them."""
    training = config.training
    if training.deterministic:
        require_workspace(ranks.device)
        torch.use_deterministic_algorithms(True)
    seed_ranks(training.seed, ranks)
    settings = engine_settings(
        ranks.layout,
        hidden_size=config.model.hidden_size,
        precision=training.precision,
        deterministic=training.deterministic,
        fused_weight_gradients=config.kernels.fuses_weight_gradients,
    )
    kernels = config.kernels.ops(ranks.device)
    chunks = build_chunks(
        config.model, settings=settings, ranks=ranks, kernels=kernels, lora=config.lora
    )
    wrapped, optimizer = make_trainable(
        chunks,
        settings,
        ranks,
        optim=config.optim,
        specs=shard_specs(chunks),
        kernels=kernels,
    )
    return Job(
        config=config,
        objective=objective,
        datasets=datasets,
        ranks=ranks,
        agreement=ranks.agreement,
        chunks=chunks,
        wrapped=wrapped,
        optimizer=optimizer,
    )
