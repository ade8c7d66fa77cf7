"""The memory plan as a table."""

from collections.abc import Sequence

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from megatron_chimed.config.run_config import RunConfig
from megatron_chimed.engine import ParallelLayout, uses_cuda
from megatron_chimed.engine.versions import op_paths
from megatron_chimed.kernels.rms_norm import RMS_NORM
from megatron_chimed.observe.console import print_table
from megatron_chimed.planning.memory import RankMemory

GIB, MIB = 1 << 30, 1 << 20
COLUMNS = "stage", "layers", "params", "weights", "grads", "adam", "saved", "in flight", "total"


def _size(count: int) -> str:
    return f"{count / GIB:.2f}G" if count >= GIB // 10 else f"{count / MIB:.1f}M"


def planned_backend(config: RunConfig) -> str:
    """The back end of the ops to plan for: what `kernels.backend` gives on the machine of the run.

    With `auto` that is known only where there is a GPU; elsewhere the plan is for fused kernels.
    """
    backend, cuda = config.kernels.backend, torch.device("cuda")
    if backend != "auto" or config.device == "cpu" or not uses_cuda():
        return backend
    paths = {path.op: path.path for path in op_paths(cuda, backend)}
    return "reference" if paths[RMS_NORM.name] == "reference" else backend


def print_memory(
    plans: Sequence[RankMemory], layout: ParallelLayout, console: Console, *, backend: str = "auto"
) -> None:
    """Prints one row for each pipeline stage, with its layers and its bytes.

    Args:
        plans: From `plan_memory`.
        layout: That was planned for.
        console: Where to print.
        backend: Of the ops that were planned for.
    """
    table = Table(
        title=f"memory of each rank: {layout.describe()}, {layout.world_size} ranks",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "layers" else "right")
    stages = layout.pipeline_parallel_size
    for plan in plans:
        chunks = range(plan.stage, len(layout.layers_per_chunk), stages)
        table.add_row(
            str(plan.stage),
            ", ".join(
                f"{layout.chunk_layers(c).start}-{layout.chunk_layers(c).stop - 1}" for c in chunks
            ),
            f"{plan.parameters / 1e6:,.1f}M",
            _size(plan.weights),
            _size(plan.gradients),
            _size(plan.optimizer),
            _size(plan.activations),
            f"{plan.micro_batches_in_flight:g}",
            _size(plan.total),
        )
    print_table(table, console)
    if host := max(plan.host for plan in plans):
        console.print(
            f"optim.offload: up to {_size(host)} of master weights and moments of each rank are in "
            "host memory, and two staging buffers of its largest matrix. In each step the gradient "
            "comes down and the weights go up."
        )
    console.print(
        "M and G are MiB and GiB; saved: activations for backward of the micro-batches in flight, "
        "counted by running the model's own code in a fake world. Not counted: allocator "
        "fragmentation, communication buffers, one layer's working set. "
        + (
            "The ops are plain torch, which keeps more than fused kernels."
            if backend == "reference"
            else "The ops are fused kernels; --kernels.backend reference plans for a machine "
            "without them."
        )
    )
