"""Adapts a stage (forward and loss) to megatron-core's pipeline schedules."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
import torch.distributed as dist
from megatron.core.pipeline_parallel import get_forward_backward_func

from megatron_chimed.engine.ranks import Ranks

Batch = Mapping[str, torch.Tensor]


class Stage(Protocol):
    """What a training stage gives the engine. A stage knows no loop and no ranks."""

    metric_names: tuple[str, ...]
    """Names of the sums that `loss` reports beside the loss."""

    def forward(self, batch: Batch, model: torch.nn.Module) -> torch.Tensor:
        """Runs one chunk of the model; called on every pipeline stage."""

    def loss(
        self, output: torch.Tensor, batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor, Mapping[str, torch.Tensor]]:
        """(sum of losses, int count of what was summed, metric sums); on the last stage only."""

    def averages(self, totals: "Totals") -> Mapping[str, float]:
        """What to report of the metric sums of a global batch or a validation."""

    def by_source(self, totals: "Totals") -> Mapping[str, tuple[float, float]]:
        """Of each source of a blend the sum of its losses and how many tokens it has."""

    def details(self, totals: "Totals") -> Mapping[str, list]:
        """Lists of numbers to record of a validation beside the averages, such as a histogram."""


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Sums over a global batch, the same on every rank."""

    loss_sum: float
    count: int
    metrics: Mapping[str, float]

    @property
    def loss(self) -> float:
        """Mean loss for each counted token (or pair)."""
        return self.loss_sum / max(self.count, 1)


def run_schedule(
    stage: Stage,
    chunks: Sequence[torch.nn.Module],
    micro_batches: Sequence[Batch],
    *,
    ranks: Ranks,
    forward_only: bool = False,
) -> Totals:
    """Forward (and backward) over one global batch with the schedule that the layout asks for.

    Every pipeline stage reads the same deterministic micro-batches, so nothing but activations is
    sent between stages.

    Args:
        stage: Gives forward and loss.
        chunks: This rank's chunks, in virtual stage order.
        micro_batches: This data-parallel rank's share; each holds `tokens` [b, s].
        ranks: This rank's place.
        forward_only: Evaluate without gradients.

    Returns:
        Sums over all data-parallel ranks. Gradients are added to those that are there
        (`Optimizer.zero_grad`), divided by the total count.
    """
    iterators = [iter(micro_batches) for _ in chunks]
    interleaved = ranks.layout.virtual_pipeline_parallel_size > 1
    micro_batch_size, seq_length = micro_batches[0]["tokens"].shape
    with torch.set_grad_enabled(not forward_only):
        reports = get_forward_backward_func()(
            forward_step_func=partial(_forward_step, stage),
            data_iterator=iterators if interleaved else iterators[0],
            model=list(chunks) if interleaved else chunks[0],
            num_microbatches=len(micro_batches),
            seq_length=seq_length,
            micro_batch_size=micro_batch_size,
            forward_only=forward_only,
        )
    return _sum_reports(reports, stage.metric_names, ranks)


def _forward_step(
    stage: Stage, batches: Iterator[Batch], model: torch.nn.Module
) -> tuple[torch.Tensor, Callable[[torch.Tensor], Any]]:
    batch = next(batches)
    return stage.forward(batch, model), partial(_loss, stage, batch)


def _loss(
    stage: Stage, batch: Batch, output: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    loss_sum, count, metrics = stage.loss(output, batch)
    values = [loss_sum, count, *(metrics[name] for name in stage.metric_names)]
    # megatron-core divides the loss and the count in place: report copies.
    report = torch.stack([value.detach().to(torch.float64) for value in values])
    return loss_sum, count.to(torch.int32).clone(), report


def _sum_reports(reports: Sequence[torch.Tensor], names: Sequence[str], ranks: Ranks) -> Totals:
    if ranks.is_last_stage:
        totals = torch.stack(list(reports)).sum(dim=0)
        dist.all_reduce(totals, group=ranks.data_group)
    else:
        totals = torch.zeros(2 + len(names), dtype=torch.float64, device=ranks.device)
    if ranks.layout.pipeline_parallel_size > 1:
        dist.broadcast(totals, src=ranks.last_stage_rank, group=ranks.pipeline_group)
    loss_sum, count, *metrics = totals.tolist()
    return Totals(
        loss_sum=loss_sum, count=int(count), metrics=dict(zip(names, metrics, strict=True))
    )
