"""The schema of each op of the kernel library, and what it returns for tensors without values.

Both are known once an op's module is imported, whether or not the library is built.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch


def define(schema: str, fake: Callable[..., Any]) -> None:
    """Makes an op known as `torch.ops.chimed.NAME`; the kernel library implements it.

    Args:
        schema: In torch's notation: `NAME(Tensor x, float eps) -> Tensor`.
        fake: Makes empty outputs from the same arguments. Fake tensors (planning a run without its
            memory) and torch.compile call it.
    """
    name = schema.partition("(")[0]
    if hasattr(torch.ops.chimed, name):  # its module is imported again
        return
    _library().define(schema)
    torch.library.register_fake(f"chimed::{name}", fake, lib=_library())


def row_statistics(x: torch.Tensor) -> torch.Tensor:
    """An empty fp32 number for each row of `x`."""
    return x.new_empty((x.numel() // max(1, x.shape[-1]),), dtype=torch.float32)


@functools.cache
def _library() -> torch.library.Library:
    """The namespace of the ops; schemas last as long as this object."""
    return torch.library.Library("chimed", "FRAGMENT")
