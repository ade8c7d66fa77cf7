"""The ops: bound to one backend, chosen once for a run and passed to their callers; and listed."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from megatron_chimed.kernels import native
from megatron_chimed.kernels.adamw import ADAMW, adamw_
from megatron_chimed.kernels.attention import CAUSAL_ATTENTION, causal_attention
from megatron_chimed.kernels.cached_attention import CACHED_ATTENTION, cached_attention
from megatron_chimed.kernels.cross_entropy import (
    CROSS_ENTROPY,
    linear_cross_entropy,
    vocab_parallel_cross_entropy,
)
from megatron_chimed.kernels.invariant_linear import INVARIANT_LINEAR, invariant_linear
from megatron_chimed.kernels.l2_norm import L2_NORM, l2_norm
from megatron_chimed.kernels.linear import LINEAR
from megatron_chimed.kernels.native import ComposedOp, FusedOp
from megatron_chimed.kernels.rms_norm import ADD_RMS_NORM, RMS_NORM, add_rms_norm, rms_norm
from megatron_chimed.kernels.rope import ROPE, rope
from megatron_chimed.kernels.softmax import SCALED_MASKED_SOFTMAX, scaled_masked_softmax
from megatron_chimed.kernels.swiglu import SWIGLU, swiglu
from megatron_chimed.kernels.wgrad import WEIGHT_GRADIENT


def _entry(function: Callable, op: FusedOp | ComposedOp) -> Any:
    """A field of `Kernels`: the function that it binds and the op that this runs."""
    return field(default=function, metadata={"op": op})


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """The ops, bound to one backend; each field is the function of its name."""

    rms_norm: Callable = _entry(rms_norm, RMS_NORM)
    add_rms_norm: Callable = _entry(add_rms_norm, ADD_RMS_NORM)
    swiglu: Callable = _entry(swiglu, SWIGLU)
    rope: Callable = _entry(rope, ROPE)
    vocab_parallel_cross_entropy: Callable = _entry(vocab_parallel_cross_entropy, CROSS_ENTROPY)
    linear_cross_entropy: Callable = _entry(linear_cross_entropy, CROSS_ENTROPY)
    scaled_masked_softmax: Callable = _entry(scaled_masked_softmax, SCALED_MASKED_SOFTMAX)
    adamw_: Callable = _entry(adamw_, ADAMW)
    l2_norm: Callable = _entry(l2_norm, L2_NORM)
    cached_attention: Callable = _entry(cached_attention, CACHED_ATTENTION)
    invariant_linear: Callable = _entry(invariant_linear, INVARIANT_LINEAR)
    causal_attention: Callable = _entry(causal_attention, CAUSAL_ATTENTION)


OPS = (*dict.fromkeys(entry.metadata["op"] for entry in fields(Kernels)), LINEAR, WEIGHT_GRADIENT)
"""Every op, fused and composed."""


def bind(backend: str, *, device: torch.device | None = None) -> Kernels:
    """The ops with one backend, one of `native.BACKENDS`.

    Args:
        backend: See `native.implementation`.
        device: Where they will run, if that is known: what cannot run there is refused now.

    Raises:
        KernelError: The backend is unknown, or has no kernels for `device`.
    """
    if device is not None:
        native.implementation(RMS_NORM, backend, torch.empty(0, device=device))
    names = (entry.name for entry in fields(Kernels))
    return Kernels(
        **{name: functools.partial(getattr(Kernels, name), backend=backend) for name in names}
    )


AUTO = bind("auto")
"""Fused kernels where there are any."""


@dataclass(frozen=True, kw_only=True)
class OpPath:
    """Which code one op runs on one device."""

    op: str
    """Name of the op, e.g. `rms_norm`."""

    device: str
    """`cpu` or `cuda`."""

    path: str
    """`fused CPU AVX2`, `fused CUDA`, `Triton`, `reference`, `refused`, ..."""

    reason: str
    """Why this path and no other."""


def describe(backend: str = "auto") -> list[OpPath]:
    """The path of every op on every device of this machine, and the reason, for a report."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    paths = []
    for device in devices:
        for op in OPS:
            path, reason = _path(op, device, backend)
            paths.append(OpPath(op=op.name, device=device, path=path, reason=reason))
    return paths


def _path(op: FusedOp | ComposedOp, device: str, backend: str) -> tuple[str, str]:
    """What runs, and why."""
    if backend == "reference":
        return "reference", "kernels.backend is reference"
    if isinstance(op, ComposedOp):
        return op.cpu if device == "cpu" else op.cuda
    if backend == "cuda" and device == "cpu":
        return "refused", "kernels.backend is cuda"
    if backend == "triton" and op.triton:
        reason = native.why_not_triton(op, device)
        return ("refused", reason) if reason else ("Triton", "kernels.backend is triton")
    if reason := native.why_not_fused(op, device):
        insists = backend in ("fused", "cuda") and not op.why_cpu_only
        return ("refused", reason) if insists else _path_without_fused(op, device, reason)
    if device == "cuda":
        return "fused CUDA", f"kernels run on {torch.cuda.get_device_name()}"
    level = native.CPU_LEVELS[native.set_cpu_level(-1)]
    return f"fused CPU {level}", "the best level of this processor"


def _path_without_fused(op: FusedOp, device: str, reason: str) -> tuple[str, str]:
    if device == "cpu" or not op.triton:
        return "reference", reason
    no_triton = native.why_not_triton(op, device)
    return ("reference", f"{reason}; {no_triton}") if no_triton else ("Triton", reason)
