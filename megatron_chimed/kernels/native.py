"""The compiled kernels: loading them, and choosing between them and the torch references.

The library is loaded once per process, when an op is first called. Without it, or for a device or
dtype that it does not support, the references run, and `binding.describe` says why.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_chimed.errors import KernelError
from megatron_chimed.kernels.checks import FUSED_DTYPES

LIBRARY = Path(__file__).resolve().parent.parent / "_kernels.so"
BACKENDS = ("auto", "fused", "reference")

OLDEST_CAPABILITY = (8, 0)
"""Compute capability of the oldest GPU that csrc/build_kernels.py compiles for."""

BUILD_HINT = "install nvcc (the CUDA toolkit) and run `BUILD_CUDA=1 make -B install`"

CPU_LEVELS = ("baseline", "AVX2", "AVX-512")


@dataclass(frozen=True, kw_only=True)
class FusedOp:
    """An op that the kernel library computes."""

    name: str
    """As messages and reports call it."""

    kernel: str
    """A name of `torch.ops.chimed` that is implemented on each device for which a kernel exists."""

    why_cpu_only: str = ""
    """Why there is no CUDA kernel; empty: there is one."""


@dataclass(frozen=True, kw_only=True)
class ComposedOp:
    """An op made of torch's products and of fused ops."""

    name: str
    """As reports call it."""

    cpu: tuple[str, str]
    """What runs on CPU, and why."""

    cuda: tuple[str, str]
    """What runs on CUDA, and why."""


@functools.cache
def load_library(library: Path = LIBRARY) -> str:
    """Loads the kernels; returns '', or why that was not possible."""
    if not library.is_file():
        return f"{library.name} is not built: run `make install`"
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        # The loader's own message (a missing symbol, a wrong architecture) is the cause.
        return f"{library.name} does not load: {error.__cause__ or error}"
    return ""


def why_not_fused(op: FusedOp, device: str, dtype: torch.dtype = torch.float32) -> str:
    """Why the kernel of an op cannot run on a device type, or ''."""
    return _constant_reason(op.kernel, op.why_cpu_only, device, dtype)


@torch.compiler.assume_constant_result  # torch.compile asks once, while it traces
def _constant_reason(kernel: str, why_cpu_only: str, device: str, dtype: torch.dtype) -> str:
    return _reason(kernel, why_cpu_only, device, dtype)


@functools.cache
def _reason(kernel: str, why_cpu_only: str, device: str, dtype: torch.dtype) -> str:
    missing = load_library()
    if missing:
        return missing
    if dtype not in FUSED_DTYPES:
        return f"the kernels compute on float32, float16 and bfloat16, not {dtype}"
    if device == "meta":
        return ""
    key = {"cpu": "CPU", "cuda": "CUDA"}.get(device)
    if key is None:
        return f"there are kernels for cpu and cuda, not for {device}"
    if key == "CUDA" and why_cpu_only:
        return why_cpu_only
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"chimed::{kernel}", key):
        return f"{LIBRARY.name} was built without {key}{': ' + BUILD_HINT if key == 'CUDA' else ''}"
    return _why_too_old() if key == "CUDA" else ""


def _why_too_old() -> str:
    """Why this process's GPU cannot run the kernels: a launch would find no image for it."""
    if not torch.cuda.is_available():
        return ""  # fake tensors
    found = torch.cuda.get_device_capability()
    if found >= OLDEST_CAPABILITY:
        return ""
    oldest, here = (".".join(map(str, each)) for each in (OLDEST_CAPABILITY, found))
    return f"the kernels are built for compute capability {oldest} and later, this GPU has {here}"


def use_fused(op: FusedOp, backend: str, tensor: torch.Tensor) -> bool:
    """Whether an op takes the fused path.

    Args:
        op: The op that asks.
        backend: `auto` uses the kernel where it can run, `fused` always, `reference` never. Where
            an op has no kernel on purpose, `fused` does not insist on one.
        tensor: Decides by its device and dtype.

    Raises:
        KernelError: `fused` was requested and cannot run, or the backend is unknown.
    """
    if backend == "reference":
        return False
    if backend not in BACKENDS:
        choices = ", ".join(BACKENDS)
        raise KernelError(f"{op.name}: backend is {backend!r}, expected one of {choices}.")
    if op.why_cpu_only and tensor.device.type != "cpu":
        return False
    reason = why_not_fused(op, tensor.device.type, tensor.dtype)
    if reason and backend == "fused":
        raise KernelError(
            f"{op.name}: backend is 'fused', but {reason}. Or choose backend 'auto' or 'reference'."
        )
    return not reason


def set_cpu_level(level: int) -> int:
    """Chooses the instruction set of all CPU kernels, for tests and benchmarks.

    Args:
        level: Index into `CPU_LEVELS`; -1 or a level that this machine lacks changes nothing.

    Returns:
        The level in use from now on.
    """
    assert not load_library(), "the kernels are not built"
    return int(torch.ops.chimed.cpu_level(level))
