"""The loss on held-out data: every sample counted once, whatever the batch size."""

import math
from collections.abc import Callable

import numpy as np

from megatron_chimed.data.datasets.blend import SampleSource
from megatron_chimed.engine import Totals, run_schedule
from megatron_chimed.errors import NumericError
from megatron_chimed.training.job import Job

SILENT = {"loss_mask": 0, "ranks": -1}
"""What a sample holds of which no token and no candidate counts."""


class Once:
    """A source read once: samples past its end repeat the last one, and nothing counts in them."""

    def __init__(self, source: SampleSource, count: int) -> None:
        self._source, self._count = source, count

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Sample `index >= 0`."""
        sample = self._source[min(index, self._count - 1)]
        if index < self._count:
            return sample
        silent = {
            name: np.full_like(sample[name], v) for name, v in SILENT.items() if name in sample
        }
        return {**sample, **silent}

    def locate(self, index: int) -> str:
        """Names the documents of a sample, for messages."""
        return self._source.locate(min(index, self._count - 1))


def validate(
    job: Job, source: SampleSource, is_stopped: Callable[[], bool] = lambda: False
) -> Totals | None:
    """Sums over `eval_steps` global batches, or over the whole source once when that is 0.

    Args:
        job: The job.
        source: Held-out data.
        is_stopped: Asked before each batch, on all ranks alike.

    Returns:
        The sums; None if it was stopped.

    Raises:
        NumericError: The loss is not finite.
    """
    training = job.config.training
    batch_size = training.global_batch_size
    count = source.samples_per_epoch
    steps = training.eval_steps or math.ceil(count / batch_size)
    batches = job.batches(Once(source, count), consumed=0, prefetch=0)
    totals = []
    for chunk in job.wrapped:
        chunk.eval()
    stopped = False
    for _ in range(min(steps, math.ceil(count / batch_size))):
        if stopped := is_stopped():
            break
        micro_batches = next(batches)
        totals.append(
            run_schedule(job.stage, job.wrapped, micro_batches, ranks=job.ranks, forward_only=True)
        )
    for chunk in job.wrapped:
        chunk.train()
    batches.close()
    if stopped:
        return None
    if not math.isfinite(sum(t.loss_sum for t in totals)):
        raise NumericError(
            f"the validation loss after step {job.progress.step} is not finite, so the weights or "
            "the validation data are broken. Go on from an older checkpoint with a lower "
            "--optim.lr, or look at the data with tools/inspect_dataset.py."
        )
    names = job.stage.metric_names
    return Totals(
        loss_sum=sum(t.loss_sum for t in totals),
        count=sum(t.count for t in totals),
        metrics={name: sum(t.metrics[name] for t in totals) for name in names},
    )
