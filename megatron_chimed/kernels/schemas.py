"""The schema of each op of the kernel library, and what it returns for tensors without values.

Both are known once an op's module is imported, whether or not the library is built.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch


def define(schema: str, fake: Callable[..., Any], *, triton: bool = False) -> None:
    """Makes an op known as `torch.ops.chimed.NAME`; the kernel library implements it.

    Args:
        schema: In torch's notation: `NAME(Tensor x, float eps) -> Tensor`.
        fake: Makes empty outputs from the same arguments. Fake tensors (planning a run without its
            memory) and torch.compile call it.
        triton: Also makes `torch.ops.chimed_triton.NAME` known; `kernels/triton_ops` implements it.
    """
    name = schema.partition("(")[0]
    if hasattr(torch.ops.chimed, name):  # its module is imported again
        return
    for namespace in ("chimed", "chimed_triton") if triton else ("chimed",):
        library = _library(namespace)
        library.define(schema)
        torch.library.register_fake(f"{namespace}::{name}", fake, lib=library)


def implement_in_triton(name: str, function: Callable[..., Any], key: str) -> None:
    """Makes a function what `torch.ops.chimed_triton.NAME` runs for a dispatch key."""
    _library("chimed_triton").impl(name, function, key)


def row_statistics(x: torch.Tensor) -> torch.Tensor:
    """An empty fp32 number for each row of `x`."""
    return x.new_empty((x.numel() // max(1, x.shape[-1]),), dtype=torch.float32)


@functools.cache
def _library(namespace: str) -> torch.library.Library:
    """A namespace of ops; schemas last as long as this object."""
    return torch.library.Library(namespace, "FRAGMENT")
