"""The compiled kernels: loading them, and choosing between them and the torch references.

The library is loaded once per process, when an op is first called. Without it, or for a device or
dtype that it does not support, the references run, and `describe` says why.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_chimed.errors import KernelError
from megatron_chimed.kernels.checks import FUSED_DTYPES
from megatron_chimed.kernels.fakes import register_fakes

LIBRARY = Path(__file__).resolve().parent.parent / "_kernels.so"
BACKENDS = ("auto", "fused", "reference")

# Op -> an overload whose presence on a device means that the op has a kernel there.
OPS = {
    "rms_norm": "rms_norm_backward",
    "add_rms_norm": "add_rms_norm_backward",
    "swiglu": "swiglu_backward",
    "rope": "rope",
    "cross_entropy": "cross_entropy_backward_",
    "scaled_masked_softmax": "scaled_masked_softmax_backward",
    "adamw": "adamw_",
    "l2_norm": "l2_norm",
    "cached_attention": "cached_attention",
    "invariant_linear": "invariant_linear",
}
# Ops without a CUDA kernel, and why they need none.
CPU_ONLY = {
    "cached_attention": "on CUDA torch's fused attention does it",
    "invariant_linear": "on CUDA torch's linear does it",
}
# Ops composed of torch's products and of ops above: op -> device -> (path, reason).
COMPOSITES = {
    "wgrad_gemm_accum": {
        "cpu": ("torch addmm", "in half precision torch has no sum into fp32: product, then add"),
        "cuda": ("torch addmm", "cuBLAS adds half-precision products into fp32"),
    },
    "linear": {
        "cpu": ("oneDNN or MKL", "oneDNN is ahead for large fp32 products, MKL for small ones"),
        "cuda": ("cuBLAS", "nothing is faster"),
    },
    "causal_attention": {
        "cpu": ("in blocks or sdpa", "blocks pay for fp32, one thread and 128 to 1024 tokens"),
        "cuda": ("sdpa", "torch's fused attention"),
    },
}
CPU_LEVELS = ("baseline", "AVX2", "AVX-512")


@dataclass(frozen=True, kw_only=True)
class OpPath:
    """Which code one op runs on one device."""

    op: str
    """Name of the op, e.g. `rms_norm`."""

    device: str
    """`cpu` or `cuda`."""

    path: str
    """`fused CPU AVX2`, `fused CUDA`, `reference`, ..."""

    reason: str
    """Why this path and no other."""


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
    register_fakes()
    return ""


@torch.compiler.assume_constant_result  # torch.compile asks once, while it traces
def why_not_fused(op: str, device: str, dtype: torch.dtype = torch.float32) -> str:
    """Why the fused kernel of an op cannot run on a device type, or ''."""
    return _why_not_fused(op, device, dtype)


@functools.cache
def _why_not_fused(op: str, device: str, dtype: torch.dtype) -> str:
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
    if key == "CUDA" and op in CPU_ONLY:
        return CPU_ONLY[op]
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"chimed::{OPS[op]}", key):
        return f"{LIBRARY.name} was built without {key}: set BUILD_CUDA=1 and build again"
    return ""


def use_fused(op: str, backend: str, tensor: torch.Tensor) -> bool:
    """Whether an op takes the fused path.

    Args:
        op: A name of `OPS`.
        backend: `auto` uses the kernel where it can run, `fused` always, `reference` never.
        tensor: Decides by its device and dtype.

    Raises:
        KernelError: `fused` was requested and cannot run, or the backend is unknown.
    """
    if backend == "reference":
        return False
    if backend not in BACKENDS:
        raise KernelError(f"{op}: backend is {backend!r}, expected one of {', '.join(BACKENDS)}.")
    reason = why_not_fused(op, tensor.device.type, tensor.dtype)
    if reason and backend == "fused":
        raise KernelError(
            f"{op}: backend is 'fused', but {reason}. Or choose backend 'auto' or 'reference'."
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


def describe(backend: str = "auto") -> list[OpPath]:
    """The path of every op on every device of this machine, and the reason, for a report."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return [
        path
        for device in devices
        for path in (
            *(_describe(op, device, backend) for op in OPS),
            *(_describe_composite(op, device, backend) for op in COMPOSITES),
        )
    ]


def _describe_composite(op: str, device: str, backend: str) -> OpPath:
    if backend == "reference":
        reason = "kernels.backend is reference"
        return OpPath(op=op, device=device, path="reference", reason=reason)
    path, reason = COMPOSITES[op][device]
    return OpPath(op=op, device=device, path=path, reason=reason)


def _describe(op: str, device: str, backend: str) -> OpPath:
    reason = why_not_fused(op, device)
    if backend == "reference" or reason:
        reason = "kernels.backend is reference" if backend == "reference" else reason
        return OpPath(op=op, device=device, path="reference", reason=reason)
    if device == "cuda":
        name = torch.cuda.get_device_name()
        return OpPath(op=op, device=device, path="fused CUDA", reason=f"kernels run on {name}")
    level = CPU_LEVELS[set_cpu_level(-1)]
    return OpPath(
        op=op, device=device, path=f"fused CPU {level}", reason="the best level of this processor"
    )
