"""Makes model chunks trainable: gradient reduction, an optimizer, and what the schedules call."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)

from megatron_chimed.config.optim import OptimConfig
from megatron_chimed.config.parallel import ParallelConfig
from megatron_chimed.engine.optimizer import Optimizer
from megatron_chimed.engine.ranks import Ranks
from megatron_chimed.engine.settings import EngineSettings
from megatron_chimed.engine.shards import ShardSpec
from megatron_chimed.engine.shared_rows import SharedGradients
from megatron_chimed.kernels import AUTO, Kernels

WrappedChunk = DistributedDataParallel
"""A model chunk wrapped for gradient reduction."""


def make_trainable(
    chunks: Sequence[torch.nn.Module],
    settings: EngineSettings,
    ranks: Ranks,
    *,
    optim: OptimConfig,
    specs: Mapping[torch.nn.Parameter, Sequence[ShardSpec]],
    kernels: Kernels = AUTO,
) -> tuple[list[DistributedDataParallel], Optimizer]:
    """Wraps the chunks of this rank for gradient reduction in fp32 and builds their optimizer.

    Completes `settings`, which the chunks share: the schedules look there for the functions that
    they call during a step. Nothing changes it afterwards.

    Args:
        chunks: This rank's chunks, in virtual stage order.
        settings: The job's engine settings.
        ranks: This rank's place.
        optim: The optimizer's settings.
        specs: What each parameter of the chunks holds.
        kernels: The ops, bound to a back end.
    """
    parallel = ranks.layout.config
    wrapped = _wrap(chunks, settings, parallel)
    shared = SharedGradients(specs, ranks.tensor_group)
    optimizer = Optimizer(
        wrapped, settings, ranks.layout, config=optim, shared=shared, kernels=kernels
    )
    settings.finalize_model_grads_func = partial(_finalize, shared)
    settings.grad_scale_func = optimizer.scale_loss
    if parallel.overlap_grad_reduce:
        settings.no_sync_func = _one_or_all([chunk.no_sync for chunk in wrapped])
        if len(wrapped) > 1:
            settings.grad_sync_func = [chunk.start_grad_sync for chunk in wrapped]
    return wrapped, optimizer


def _finalize(shared: SharedGradients, *args: Any, **options: Any) -> None:
    finalize_model_grads(*args, **options)
    shared.sum_gradients()


def _wrap(
    chunks: Sequence[torch.nn.Module], settings: EngineSettings, parallel: ParallelConfig
) -> list[DistributedDataParallel]:
    config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        overlap_grad_reduce=parallel.overlap_grad_reduce,
        overlap_param_gather=parallel.overlap_param_gather,
        use_distributed_optimizer=parallel.distributed_optimizer,
        average_in_collective=False,
    )
    return [
        # It reads no more of a TransformerConfig than the settings have.
        DistributedDataParallel(cast(Any, settings), config, chunk, disable_bucketing=index > 0)
        for index, chunk in enumerate(chunks)
    ]


def _one_or_all(functions: list[Callable]) -> Callable | list[Callable]:
    return functions[0] if len(functions) == 1 else functions


def synchronize_parameters(chunks: Sequence[DistributedDataParallel]) -> None:
    """Finishes the gather of weights that `overlap_param_gather` left for the next forward."""
    for chunk in chunks:
        if chunk.ddp_config.overlap_param_gather:
            chunk.disable_forward_pre_hook()
            chunk.enable_forward_pre_hook()
