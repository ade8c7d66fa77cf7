"""The frozen reference of DPO: its log-probabilities, computed once and kept beside the run.

The reference is the model that the run starts from, so one model in memory is enough: before its
first step the run computes them for all data with its own forward pass and layout. The results are
identified by hashes of that checkpoint and of the data, and are written block by block, so a
stopped run resumes.
"""

import dataclasses
import hashlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch

from megatron_chimed.checkpoint.manifest import MANIFEST_NAME
from megatron_chimed.checkpoint.reader import CheckpointReader, open_checkpoint
from megatron_chimed.checkpoint.safetensors_io import (
    SafetensorsFile,
    TensorSpec,
    write_safetensors,
)
from megatron_chimed.data.datasets.blend import SampleSource, leaves
from megatron_chimed.data.datasets.preference import PreferenceDataset
from megatron_chimed.data.datasets.prefix import content_of
from megatron_chimed.engine import Batch, peers_may_fail, run_schedule
from megatron_chimed.errors import ConfigError
from megatron_chimed.files import atomic_file
from megatron_chimed.model import TokenLoss
from megatron_chimed.training.job import Job
from megatron_chimed.training.objectives.dpo import AnswerLogProbs
from megatron_chimed.training.objectives.pairs import find_candidates
from megatron_chimed.training.state import load_weights, restore
from megatron_chimed.training.validation import SinglePass

FILE_NAME = "reference.safetensors"
BLOCK_STEPS = 16  # global batches between two writes, the most that a kill can lose
REPORT_SECONDS = 10.0


class ReferenceObjective:
    """Collects the log-probability of each candidate, on ranks of the last pipeline stage."""

    metric_names: tuple[str, ...] = ()

    def __init__(self, token_loss: TokenLoss) -> None:
        self.log_probs = AnswerLogProbs(token_loss)
        self.collected: list[tuple[int, list[float]]] = []
        """(sample index, values of its candidates in order)."""

    def forward(self, batch: Batch, model: torch.nn.Module) -> torch.Tensor:
        """Runs one chunk."""
        return self.log_probs.forward(batch, model)

    def loss(
        self, output: torch.Tensor, batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor, Mapping[str, torch.Tensor]]:
        """(sum over candidates, their number, nothing)."""
        found = find_candidates(batch)
        values = self.log_probs.sums(output, batch, found)
        for row, sample in enumerate(batch["sample_index"].tolist()):
            if (is_here := found.rows == row).any():
                self.collected.append((sample, values[is_here].tolist()))
        return values.sum(), torch.tensor(len(values), device=values.device), {}


def add_reference(job: Job, token_loss: TokenLoss) -> Job:
    """Adds the reference's log-probabilities to the job's data; every rank calls it.

    Args:
        job: Restored; `checkpoint.load` of its configuration names the reference.
        token_loss: The loss of each token.

    Returns:
        The job with a note about their origin, otherwise unchanged.

    Raises:
        CheckpointError: The reference is damaged or does not fit.
        ConfigError: The file in the run's folder belongs to another reference.
        OutputError: The file cannot be written.
    """
    path = job.config.output_dir / FILE_NAME
    assert job.config.checkpoint.load is not None, "DPO without checkpoint.load"
    reader = open_checkpoint(job.config.checkpoint.load, agreement=job.agreement)
    sources = _preference_sources(job)
    reference = _identity(reader, job.config.training.precision)
    names = [f"{reference} {_digest(content_of(source.indexed))}" for source in sources]
    arrays: dict[str, np.ndarray] = {}
    job.agreement.on_all_ranks(lambda: arrays.update(_read(path, names, sources, reference)))
    missing = [list(_missing_steps(job, s, arrays[n])) for n, s in zip(names, sources, strict=True)]
    if any(missing):
        load_weights(job, reader)  # a resumed run has others
        objective = ReferenceObjective(token_loss)
        for name, source, steps in zip(names, sources, missing, strict=True):
            for _ in _compute(job, objective, source, arrays[name], steps):
                job.agreement.on_rank_0(lambda: _write(path, arrays))
        restore(job)
    for name, source in zip(names, sources, strict=True):
        source.log_probs = arrays[name]
    computed = sum(map(len, missing))
    how = f"{computed} global batches computed" if computed else "all read"
    note = f"reference: log-probabilities by {reader.directory} in {path}, {how}"
    datasets = dataclasses.replace(job.datasets, notes=(*job.datasets.notes, note))
    return dataclasses.replace(job, datasets=datasets)


def _compute(
    job: Job,
    objective: ReferenceObjective,
    source: PreferenceDataset,
    log_probs: np.ndarray,
    steps: Sequence[int],
) -> Iterator[None]:
    """Computes the given steps' values, on every rank; yields after each block."""
    if not steps:
        return
    size = job.config.training.global_batch_size
    batches = job.batches(
        SinglePass(source, source.samples_per_epoch), consumed=steps[0] * size, prefetch=0
    )
    for chunk in job.wrapped:
        chunk.eval()
    reported, last = time.monotonic(), _steps(job, source) - 1
    for step in range(steps[0], last + 1):
        with peers_may_fail("the reference's pass over the data"):
            run_schedule(objective, job.wrapped, next(batches), ranks=job.ranks, forward_only=True)
        if step != last and (step - steps[0] + 1) % BLOCK_STEPS:
            continue
        collected = objective.collected if job.ranks.tensor_rank == 0 else []
        for values_of_rank in job.agreement.on_all_ranks(lambda collected=collected: collected):
            for sample, values in values_of_rank:
                log_probs[source.sequences(sample)] = values
        objective.collected = []
        if job.ranks.rank == 0 and time.monotonic() - reported > REPORT_SECONDS:
            reported = time.monotonic()
            print(f"reference: {step + 1} of {last + 1} global batches", flush=True)
        yield
    for chunk in job.wrapped:
        chunk.train()
    batches.close()


def _steps(job: Job, source: PreferenceDataset) -> int:
    """Global batches in one pass over a source."""
    return math.ceil(source.samples_per_epoch / job.config.training.global_batch_size)


def _missing_steps(job: Job, source: PreferenceDataset, log_probs: np.ndarray) -> Iterator[int]:
    """Global batches with a candidate whose value is missing."""
    size, count = job.config.training.global_batch_size, source.samples_per_epoch
    for step in range(_steps(job, source)):
        samples = range(step * size, min((step + 1) * size, count))
        if any(np.isnan(log_probs[source.sequences(sample)]).any() for sample in samples):
            yield step


def _preference_sources(job: Job) -> list[PreferenceDataset]:
    parts: list[SampleSource | None] = [job.datasets.train, job.datasets.valid, job.datasets.test]
    sources = [source for part in parts if part is not None for source in leaves(part)]
    return [cast(PreferenceDataset, source) for source in sources]  # stage dpo reads no others


def _identity(reader: CheckpointReader, precision: str) -> str:
    """Identity of the model and its precision; the manifest has the hash of every file."""
    manifest = (reader.directory / MANIFEST_NAME).read_bytes()
    return f"{hashlib.sha256(manifest).hexdigest()} {precision}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _read(
    path: Path, names: Sequence[str], sources: Sequence[PreferenceDataset], reference: str
) -> dict[str, np.ndarray]:
    """The stored values: fp64 [sequences] for each name, NaN where missing."""
    arrays = {
        name: np.full(len(source.indexed), np.nan)
        for name, source in zip(names, sources, strict=True)
    }
    if not path.exists():
        return arrays
    file = SafetensorsFile(path)
    if not all(name.startswith(reference) for name in file.specs):
        raise ConfigError(
            f"{path} holds the log-probabilities of another reference (or precision) than "
            "checkpoint.load now names. Set it back, give another --output-dir, or, if this run "
            "has not started, remove the file."
        )
    for name in arrays.keys() & file.specs.keys():
        arrays[name][:] = file.read(name).numpy()
    return arrays


def _write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    specs = {name: TensorSpec(t.dtype, tuple(t.shape)) for name, t in tensors.items()}
    with atomic_file(path) as temporary:
        write_safetensors(temporary, specs, tensors.__getitem__)
