"""Running out of GPU memory as one message: what was planned, what there is, what to lower."""

import contextlib
from collections.abc import Iterator

import torch

from megatron_chimed.config.run_config import RunConfig
from megatron_chimed.engine import ParallelLayout
from megatron_chimed.errors import GpuMemoryError, is_gpu_out_of_memory
from megatron_chimed.planning.memory import plan_memory
from megatron_chimed.planning.report import GIB, planned_backend


@contextlib.contextmanager
def explaining_out_of_memory(config: RunConfig, layout: ParallelLayout) -> Iterator[None]:
    """Turns the errors of an allocation on the GPU into one of ours, with the plan's figures.

    The process groups must have been left when the block ends: the plan makes fake ones.

    Raises:
        GpuMemoryError: torch, cuBLAS or NCCL could not allocate.
    """
    try:
        yield
    except (RuntimeError, GpuMemoryError) as error:  # ours: another rank's, without the plan
        if not is_gpu_out_of_memory(error):
            raise
        torch.cuda.empty_cache()
        raise GpuMemoryError(_explain(config, layout, str(error))) from error


def _explain(config: RunConfig, layout: ParallelLayout, said: str) -> str:
    backend = planned_backend(config)
    plans = plan_memory(
        config.model,
        layout,
        training=config.training,
        seq_length=config.data.seq_length,
        lora=config.lora,
        backend=backend,
    )
    if config.optim.offload:
        plans = [plan.with_host_optimizer() for plan in plans]
    most = max(plans, key=lambda plan: plan.total)
    ops = "plain torch" if backend == "reference" else "fused kernels"
    torch_said = said.partition(" If reserved")[0].partition(" Including non-PyTorch")[0]
    return (
        f"a GPU is out of memory. The plan for a rank of stage {most.stage}, with {ops}, is "
        f"{most.total / GIB:.1f} GiB (weights {most.weights / GIB:.1f}, gradients "
        f"{most.gradients / GIB:.1f}, optimizer {most.optimizer / GIB:.1f}, saved activations "
        f"{most.activations / GIB:.1f}), without fragmentation, communication buffers and the "
        f"working set of a layer. To lower it, {'; '.join(_remedies(config, layout))}. torch said: "
        f"{' '.join(torch_said.split())}"
    )


def _remedies(config: RunConfig, layout: ParallelLayout) -> list[str]:
    """What would lower the memory and is not done yet, the cheapest first."""
    training, model, parallel = config.training, config.model, config.parallel
    found = []
    if not parallel.distributed_optimizer and layout.data_parallel_size > 1:
        found.append("--parallel.distributed_optimizer true")
    if training.micro_batch_size > 1:
        found.append(f"--training.micro_batch_size below {training.micro_batch_size}")
    if not parallel.sequence_parallel and parallel.tensor_parallel_size > 1:
        found.append("--parallel.sequence_parallel true")
    if model.recompute != "full":
        found.append(f"--model.recompute {'selective' if model.recompute == 'none' else 'full'}")
    if not model.chunk_tokens and model.head == "lm":
        found.append("--model.loss_chunk_tokens 1024")
    if not config.optim.offload:
        found.append("--optim.offload true")
    if not config.lora.rank:
        found.append("adapters instead of all weights (--lora.rank 16)")
    return [
        *found,
        f"more ranks for each model (--parallel.tensor_parallel_size above "
        f"{parallel.tensor_parallel_size}, --parallel.pipeline_parallel_size above "
        f"{parallel.pipeline_parallel_size})",
        f"--data.seq_length below {config.data.seq_length}",
    ]
