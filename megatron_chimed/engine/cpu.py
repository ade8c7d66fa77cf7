"""Makes megatron-core run without CUDA: where there is none, or where the CPU was asked for.

megatron-core names the CUDA device in about a hundred places. Most call
`torch.cuda.current_device()`, which returns "cpu" here; the modules that write `device="cuda"` get
their own `torch`, in which that means the CPU. The collectives then run on gloo. Nothing is changed
on disk, and torch calls of our own code cost nothing extra: a global function mode, which would be
simpler, took 3 us per call.
"""

import contextlib
import functools
import importlib
import logging
from types import ModuleType
from typing import Any

import torch

CPU = torch.device("cpu")
_CUDA_NAMES = {"torch.FloatTensor", "torch.HalfTensor", "torch.BFloat16Tensor"}

# Where megatron-core creates tensors with device="cuda" on the paths that training takes.
_MODULES = (
    "megatron.core.distributed.param_and_grad_buffer",
    "megatron.core.optimizer.clip_grads",
    "megatron.core.optimizer.grad_scaler",
    "megatron.core.optimizer.optimizer",
    "megatron.core.pipeline_parallel.schedules",
    "megatron.core.utils",
)
_FACTORIES = ("tensor", "zeros", "ones", "empty", "full")


class _TorchOnCpu(ModuleType):
    """torch, except that tensors requested on CUDA are made on the CPU."""

    def __init__(self) -> None:
        super().__init__("torch")
        for name in _FACTORIES:
            setattr(self, name, _on_cpu(getattr(torch, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _on_cpu(factory: Any) -> Any:
    @functools.wraps(factory)
    def make(*args: Any, **kwargs: Any) -> torch.Tensor:
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = CPU
        return factory(*args, **kwargs)

    return make


class _NoStream:
    """Replaces a CUDA stream: all work is already in order."""

    def wait_stream(self, stream: Any) -> None:
        """Nothing to wait for."""


def enable_cpu() -> None:
    """Prepares this process for megatron-core without CUDA. Call it after importing megatron-core.

    A second call does nothing. On a machine with CUDA, torch says afterwards that there is none.
    """
    if torch.cuda.current_device is _current_device:
        return
    from megatron.core.tensor_parallel import random

    torch.cuda.is_available = _never
    torch.cuda.current_device = _current_device
    torch.cuda.synchronize = _nothing
    torch.cuda.empty_cache = _nothing
    torch.cuda.manual_seed = torch.manual_seed
    torch.cuda.get_rng_state = _get_rng_state
    torch.cuda.set_rng_state = _set_rng_state
    torch.cuda.default_stream = torch.cuda.current_stream = _NoStream
    torch.cuda.stream = contextlib.nullcontext
    torch.cuda.nvtx.range_push = torch.cuda.nvtx.range_pop = _nothing
    torch.Tensor.cuda = torch.nn.Module.cuda = _stay
    torch.Tensor.type = _type_of_cuda(torch.Tensor.type)
    random._get_cuda_rng_state = _get_rng_state
    random._set_cuda_rng_state = _set_rng_state
    # It warns if CPU numbers are drawn in a CUDA stream; here both are the same generator.
    logging.getLogger(random.__name__).addFilter(_is_not_about_streams)
    for name in _MODULES:
        setattr(importlib.import_module(name), "torch", _TorchOnCpu())  # noqa: B010  (it has one)


def _type_of_cuda(original: Any) -> Any:
    """`Tensor.type()` as on CUDA: the optimizers derive the precision from its name."""

    @functools.wraps(original)
    def type_name(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        answer = original(self, *args, **kwargs)
        if isinstance(answer, str) and answer in _CUDA_NAMES:
            return answer.replace("torch.", "torch.cuda.", 1)
        return answer

    return type_name


def _is_not_about_streams(record: logging.LogRecord) -> bool:
    return "CPU RNG state changed" not in record.getMessage()


def _never() -> bool:
    return False


def _current_device() -> torch.device:
    return CPU


def _stay(self: Any, *args: Any, **kwargs: Any) -> Any:
    return self


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


def _get_rng_state(*args: Any, **kwargs: Any) -> torch.Tensor:
    return torch.get_rng_state()


def _set_rng_state(state: torch.Tensor, *args: Any, **kwargs: Any) -> None:
    torch.set_rng_state(state)
