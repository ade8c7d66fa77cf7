"""Running out of GPU memory while a checkpoint generates or scores, as one message of ours."""

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch

from megatron_chimed.engine import ParallelLayout, uses_cuda
from megatron_chimed.errors import GpuMemoryError, is_gpu_out_of_memory
from megatron_chimed.model import ModelConfig

GIB = 2**30
_BATCHES = {
    "lm": "--max-batch, --max-new-tokens or the longest prompt (or --batch-tokens, where answers "
    "are scored)",
    "score": "--batch-tokens or the longest answer",
}


@contextlib.contextmanager
def explaining_inference_memory(
    config: ModelConfig, layout: ParallelLayout, head: Literal["lm", "score"], dtype: torch.dtype
) -> Iterator[None]:
    """Turns the errors of an allocation on the GPU into one of ours: the figures, what to lower.

    Args:
        config: Sizes of the whole model.
        layout: Its distribution over ranks.
        head: What the model is opened for.
        dtype: Of its weights.

    Raises:
        GpuMemoryError: torch, cuBLAS or NCCL could not allocate, on this rank or on another.
    """
    try:
        yield
    except (RuntimeError, GpuMemoryError) as error:
        if not is_gpu_out_of_memory(error):
            raise
        parts = layout.tensor_parallel_size * layout.pipeline_parallel_size
        weights = config.num_parameters * dtype.itemsize // parts
        raise GpuMemoryError(
            f"a GPU is out of memory. {_figures(weights)}. Lower {_BATCHES[head]}, "
            f"{_spreading(layout, dtype)}. torch said: {_first_sentences(str(error))}"
        ) from error


def _figures(weights: int) -> str:
    text = f"The weights of a rank take about {weights / GIB:.1f} GiB"
    if not uses_cuda():
        return text
    free, total = torch.cuda.mem_get_info()
    most = torch.cuda.max_memory_allocated()
    return (
        f"{text}; with the KV cache, activations and logits this rank held up to {most / GIB:.1f} "
        f"of its GPU's {total / GIB:.1f} GiB, and {free / GIB:.1f} GiB are free"
    )


def _spreading(layout: ParallelLayout, dtype: torch.dtype) -> str:
    smaller = "load it with --precision bf16, " if dtype.itemsize > 2 else ""  # noqa: PLR2004
    return (
        f"{smaller}or spread the model over more GPUs (--parallel.tensor_parallel_size above "
        f"{layout.tensor_parallel_size}, --parallel.pipeline_parallel_size above "
        f"{layout.pipeline_parallel_size})"
    )


def _first_sentences(said: str) -> str:
    return " ".join(
        said.partition(" If reserved")[0].partition(" Including non-PyTorch")[0].split()
    )
