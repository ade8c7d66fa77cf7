"""The loss on held-out data: every sample counted once, whatever the batch size."""

import math
from collections.abc import Callable

import numpy as np

from megatron_chimed.data.datasets.blend import SampleSource
from megatron_chimed.engine import Totals, run_schedule
from megatron_chimed.errors import NumericError
from megatron_chimed.training.job import Job

MASKED = {"loss_mask": 0, "ranks": -1}
"""Values that exclude every token and candidate of a sample from the loss."""


class SinglePass:
    """A source read once: samples past its end repeat the last one, fully masked."""

    def __init__(self, source: SampleSource, count: int) -> None:
        self._source, self._count = source, count

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Sample `index >= 0`."""
        sample = self._source[min(index, self._count - 1)]
        if index < self._count:
            return sample
        masked = {
            name: np.full_like(sample[name], v) for name, v in MASKED.items() if name in sample
        }
        return {**sample, **masked}

    @property
    def samples_per_epoch(self) -> int:
        """Samples of the source that count."""
        return self._count

    def locate(self, index: int) -> str:
        """Names the documents of a sample, for messages."""
        return self._source.locate(min(index, self._count - 1))


def validate(
    job: Job, source: SampleSource, is_stopped: Callable[[], bool] = lambda: False
) -> Totals | None:
    """Sums over `eval_steps` global batches, or over one pass of the source when that is 0.

    Args:
        job: The job.
        source: Held-out data.
        is_stopped: Called before each batch on all ranks; returns whether to stop.

    Returns:
        The sums, or None if stopped.

    Raises:
        NumericError: The loss is not finite.
    """
    training = job.config.training
    batch_size = training.global_batch_size
    count = source.samples_per_epoch
    steps = training.eval_steps or math.ceil(count / batch_size)
    batches = job.batches(SinglePass(source, count), consumed=0, prefetch=0)
    totals = []
    for chunk in job.wrapped:
        chunk.eval()
    stopped = False
    for _ in range(min(steps, math.ceil(count / batch_size))):
        if stopped := is_stopped():
            break
        micro_batches = next(batches)
        totals.append(
            run_schedule(
                job.objective, job.wrapped, micro_batches, ranks=job.ranks, forward_only=True
            )
        )
    for chunk in job.wrapped:
        chunk.train()
    batches.close()
    if stopped:
        return None
    if not math.isfinite(sum(t.loss_sum for t in totals)):
        raise NumericError(
            f"the validation loss after step {job.progress.step} is not finite, so the weights or "
            "the validation data are broken. Resume from an older checkpoint with a lower "
            "--optim.lr, or inspect the data with tools/inspect_dataset.py."
        )
    names = job.objective.metric_names
    return Totals(
        loss_sum=sum(t.loss_sum for t in totals),
        count=sum(t.count for t in totals),
        metrics={name: sum(t.metrics[name] for t in totals) for name in names},
    )
