"""The flags of every command that runs a checkpoint: its layout, precision and device."""

import argparse
from typing import Any

from megatron_chimed.command_line import positive
from megatron_chimed.config.parallel import ParallelConfig


def add_inference_flags(group: argparse._ActionsContainer) -> None:
    """Adds `--parallel.*`, `--precision` and `--device`."""
    for name in ("tensor", "pipeline"):
        group.add_argument(
            f"--parallel.{name}_parallel_size",
            type=positive,
            default=1,
            metavar="N",
            help=f"{name}-parallel ranks, whatever layout the training had (default: 1)",
        )
    group.add_argument(
        "--precision",
        choices=("fp32", "bf16", "fp16"),
        help="of weights and activations (default: that of the stored weights)",
    )
    group.add_argument(
        "--device",
        choices=("auto", "cuda", "rocm", "cpu"),
        default="auto",
        help="cuda: each rank on a GPU of its own, or an error that says why not; auto: there if "
        "torch can use GPUs, else on the CPU; cpu: on the CPU, GPUs or not; rocm: on AMD GPUs, on "
        "which nothing was ever tried (default: auto)",
    )


def parallel_of(
    flags: argparse.Namespace, *, timeout_seconds: float = ParallelConfig.timeout_seconds
) -> ParallelConfig:
    """The layout that the flags ask for."""
    return ParallelConfig(
        tensor_parallel_size=getattr(flags, "parallel.tensor_parallel_size"),
        pipeline_parallel_size=getattr(flags, "parallel.pipeline_parallel_size"),
        timeout_seconds=timeout_seconds,
    )


def session_options(flags: argparse.Namespace) -> dict[str, Any]:
    """What else the flags say about the model to open: its precision and its device."""
    return {"precision": flags.precision, "device": flags.device}


def inference_flag(key: str) -> str | None:
    """The flag of such a command for a setting of a training run; None: it has none."""
    flags = {
        "parallel.tensor_parallel_size": "--parallel.tensor_parallel_size",
        "parallel.pipeline_parallel_size": "--parallel.pipeline_parallel_size",
        "training.precision": "--precision",
    }
    return flags.get(key)
