"""Choosing between an op's compiled kernel, its Triton kernel and its torch reference.

The library of compiled kernels is loaded once per process, when an op is first called; Triton is
imported when a CUDA device lacks a compiled kernel or the run asks for it. Where neither supports a
device or a dtype the references run, and `binding.describe` says why.
"""

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from megatron_chimed.errors import KernelError
from megatron_chimed.kernels.checks import FUSED_DTYPES
from megatron_chimed.kernels.interface import expected_digest, stored_digest

LIBRARY = Path(__file__).resolve().parent.parent / "_kernels.so"
BACKENDS = ("auto", "fused", "cuda", "triton", "reference")
"""What a run may ask for; `implementation` says what each means."""

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

    triton: str = ""
    """The module of `kernels/triton_ops` with its Triton kernels; empty: there are none."""


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
    """Loads the kernels; returns '', or why that was not possible.

    Raises:
        KernelError: The library was built for another version of this package.
    """
    if not library.is_file():
        return f"{library.name} is not built: run `make install`"
    _require_fitting(library)
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        # The loader's own message (a missing symbol, a wrong architecture) is the cause.
        return f"{library.name} does not load: {error.__cause__ or error}"
    return ""


def _require_fitting(library: Path) -> None:
    """Refuses a library whose ops have other arguments than this package's.

    Its first call would end the process, so no back end takes plain torch instead: the installation
    is broken, not without kernels.
    """
    built, expected = stored_digest(library), expected_digest()
    if built != expected:
        found = f"has interface {built[:12]}" if built else "was built before they were numbered"
        raise KernelError(
            f"{library} does not fit this version of megatron_chimed: it {found}, and "
            f"{expected[:12]} is needed. Run `make install` to build it again (or `make -B "
            "install`)."
        )


def _constant_in_graphs(function: Callable[..., str]) -> Callable[..., str]:
    """Lets torch.compile call the function once, while it traces.

    As `torch.compiler.assume_constant_result`, which loads torch._dynamo (2 CPU-seconds) for it.
    """
    vars(function)["_dynamo_marked_constant"] = True
    return function


def why_not_fused(op: FusedOp, device: str, dtype: torch.dtype = torch.float32) -> str:
    """Why the kernel of an op cannot run on a device type, or ''."""
    return _constant_reason(op.kernel, op.why_cpu_only, device, dtype)


@_constant_in_graphs
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
    if key == "CUDA" and torch.version.hip is not None:
        return "the kernels are compiled for NVIDIA GPUs, and torch is built for AMD's"
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


def why_not_triton(op: FusedOp, device: str, dtype: torch.dtype = torch.float32) -> str:
    """Why the Triton kernel of an op cannot run on a device type, or ''."""
    return _constant_triton_reason(op.triton, device, dtype)


@_constant_in_graphs
def _constant_triton_reason(module: str, device: str, dtype: torch.dtype) -> str:
    return _triton_reason(module, device, dtype)


@functools.cache
def _triton_reason(module: str, device: str, dtype: torch.dtype) -> str:
    if not module:
        return "it has no Triton kernel"
    if dtype not in FUSED_DTYPES:
        return f"the kernels compute on float32, float16 and bfloat16, not {dtype}"
    try:
        launch = importlib.import_module("megatron_chimed.kernels.triton_ops.launch")
        importlib.import_module(f"megatron_chimed.kernels.triton_ops.{module}")
    except ImportError as error:
        return f"Triton does not load ({error}): run `pip install triton`"
    if launch.INTERPRETED:
        return "" if device == "cpu" else "TRITON_INTERPRET=1 runs Triton kernels on CPU only"
    if device != "cuda":
        return f"Triton kernels run on cuda, not on {device}"
    if torch.version.hip is None and torch.cuda.is_available():
        capability = torch.cuda.get_device_capability()
        if capability < (8, 0):
            return f"Triton needs compute capability 8.0, and this device has {capability}"
    return ""


def implementation(op: FusedOp, backend: str, tensor: torch.Tensor) -> Any:
    """The ops that compute `op`.

    Args:
        op: The op that asks.
        backend: `auto` takes the compiled kernel where it can run, else on CUDA Triton's, else the
            reference. `fused` insists on the compiled kernel of the tensor's device, `cuda` also on
            a CUDA device. `triton` insists on Triton for the ops that it has, and is `auto` for the
            others. `reference` is plain torch. Where an op has no kernel on purpose, nothing
            insists on one.
        tensor: Decides by its device and dtype. A fake tensor on CPU stands for one on a GPU.

    Returns:
        `torch.ops.chimed`: compiled; `torch.ops.chimed_triton`; or None: the reference.

    Raises:
        KernelError: The requested kernel cannot run, or the backend is unknown.
    """
    if backend == "reference":
        return None
    if backend not in BACKENDS:
        choices = ", ".join(BACKENDS)
        raise KernelError(f"{op.name}: backend is {backend!r}, expected one of {choices}.")
    device, dtype = tensor.device.type, tensor.dtype
    if op.why_cpu_only and device != "cpu":
        return None
    if backend in ("cuda", "triton") and device == "cpu" and isinstance(tensor, FakeTensor):
        return torch.ops.chimed  # a run on a GPU is planned; all kernels have the same outputs
    if backend == "triton" and op.triton:
        _insist(op, backend, why_not_triton(op, device, dtype))
        return torch.ops.chimed_triton
    reason = why_not_fused(op, device, dtype)
    if backend == "cuda" and device != "cuda":
        reason = f"the tensors are on {device}"
    if backend in ("fused", "cuda"):
        _insist(op, backend, reason)
    if not reason:
        return torch.ops.chimed
    if device == "cuda" and not why_not_triton(op, device, dtype):
        return torch.ops.chimed_triton
    return None


def use_fused(op: FusedOp, backend: str, tensor: torch.Tensor) -> bool:
    """Whether `implementation` gives a kernel, for an op without Triton kernels."""
    return implementation(op, backend, tensor) is not None


def _insist(op: FusedOp, backend: str, reason: str) -> None:
    if reason:
        raise KernelError(
            f"{op.name}: backend is {backend!r}, but {reason}. Or choose backend 'auto' or "
            "'reference'."
        )


def set_cpu_level(level: int) -> int:
    """Chooses the instruction set of all CPU kernels, for tests and benchmarks.

    Args:
        level: Index into `CPU_LEVELS`; -1 or a level that this machine lacks changes nothing.

    Returns:
        The level in use from now on.
    """
    assert not load_library(), "the kernels are not built"
    return int(torch.ops.chimed.cpu_level(level))
