"""What the launch of every Triton kernel needs."""

from collections.abc import Callable
from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]

from megatron_chimed.kernels.schemas import implement_in_triton

INTERPRETED = bool(triton.knobs.runtime.interpret)
"""Whether Triton runs kernels on the CPU in this process."""


def register(**functions: Callable[..., Any]) -> None:
    """Makes functions the implementations of the schemas that have their names."""
    key = "CPU" if INTERPRETED else "CUDA"
    for name, function in functions.items():
        implement_in_triton(name, function, key)


def launch(
    kernel: Any, grid: tuple[int, ...], *arguments: torch.Tensor | float, **constants: Any
) -> None:
    """Enqueues a kernel on the device of its first tensor; an empty grid does nothing."""
    if 0 in grid:
        return
    with torch.cuda.device_of(arguments[0]):
        kernel[grid](*arguments, **constants)


def whole_row(width: int) -> dict[str, int]:
    """The constants of a kernel that holds one row of `width` elements in a block."""
    block = triton.next_power_of_2(max(1, width))
    return {"BLOCK": block, "num_warps": min(16, max(1, block // 512))}
