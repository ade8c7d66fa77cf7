"""Imports megatron-core before anything else does: version check, warnings, CPU path, our Adam."""

import contextlib
import importlib.metadata
import sys
import warnings
from collections.abc import Callable, Iterator

import torch

from megatron_chimed.engine.cpu import enable_cpu
from megatron_chimed.engine.device import set_connections, uses_cuda
from megatron_chimed.errors import ConfigError
from megatron_chimed.kernels import FusedAdam, register_megatron_modules

MEGATRON_CORE_VERSION = "0.16.1"

# Warnings on importing megatron-core without apex and TransformerEngine. Neither is needed, so
# exactly these are silenced.
_IMPORT_WARNINGS = (
    ".*Apex are not installed.*",
    ".*Apex is not installed.*",
    ".*torch.jit.script.* is deprecated.*",
    ".*imports from `dynamic_context.py`.*",
)
# Warnings at run time: newer names of two torch functions that it calls, that fp32 shards of the
# distributed optimizer are views, and (silenced only without CUDA) CUDA_DEVICE_MAX_CONNECTIONS.
_RUN_WARNINGS = (
    ".*attribute of a Tensor that is not a leaf Tensor is being accessed.*",
    ".*tp_group is None, using default tp group.*",
    ".*all_gather_into_tensor. is deprecated.*",
    ".*reduce_scatter_tensor. is deprecated.*",
)
_CPU_WARNINGS = (".*CUDA_DEVICE_MAX_CONNECTIONS.*",)

# Of its timers and its inference engine, which are not used here.
_UNUSED_MODULES = ("wandb", "torch.utils.tensorboard")


def check_version(found: str) -> None:
    """Refuses any other version than the pinned one, whose internals we rely on.

    Raises:
        ConfigError: Another version.
    """
    if found != MEGATRON_CORE_VERSION:
        raise ConfigError(
            f"megatron-core {found} is installed, but this package relies on the internals of "
            f"{MEGATRON_CORE_VERSION}. Install that version: "
            f"pip install megatron-core=={MEGATRON_CORE_VERSION}"
        )


@contextlib.contextmanager
def _light_imports() -> Iterator[None]:
    """Imports what is imported inside without the compiler of torch and without loggers.

    megatron-core decorates functions that are not used here with `torch.compile`, which loads the
    compiler at once, and imports loggers if it finds them: 2.5 of 6 CPU-seconds in each process.
    """

    def leave_as_is(function: Callable | None = None, **_: object) -> Callable:
        return function or (lambda decorated: decorated)

    compiler = torch.compile
    hidden = [name for name in _UNUSED_MODULES if name not in sys.modules]
    torch.__dict__["compile"] = leave_as_is
    for name in hidden:
        vars(sys)["modules"][name] = None  # an import of it raises ImportError
    try:
        yield
    finally:
        torch.__dict__["compile"] = compiler
        for name in hidden:
            del sys.modules[name]


def prepare() -> None:
    """Imports megatron-core without warnings and patches in our kernels, CPU path and optimizer.

    Raises:
        ConfigError: megatron-core is missing or another version.
    """
    try:
        check_version(importlib.metadata.version("megatron-core"))
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(
            "megatron-core is not installed. Install it: "
            f"pip install megatron-core=={MEGATRON_CORE_VERSION}"
        ) from None
    set_connections()
    register_megatron_modules()  # first: megatron-core looks for them while it is imported
    with warnings.catch_warnings(), _light_imports():
        for message in _IMPORT_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        import megatron.core.distributed
        import megatron.core.models.backends
        import megatron.core.pipeline_parallel  # noqa: F401  (imported here to be silent)
        from megatron.core import optimizer
        from megatron.core.optimizer import distrib_optimizer
        from megatron.core.tensor_parallel import layers
    for message in _RUN_WARNINGS + (() if uses_cuda() else _CPU_WARNINGS):
        warnings.filterwarnings("ignore", message=message)
    if not uses_cuda():
        enable_cpu()
    # Where a program has imported megatron-core before us, it looked in vain.
    layers.fused_weight_gradient_mlp_cuda = sys.modules["fused_weight_gradient_mlp_cuda"]
    layers._grad_accum_fusion_available = True
    # Both modules hold their own names; without the second set torch's AdamW is used silently.
    optimizer.Adam, optimizer.USING_PYTORCH_OPTIMIZER = FusedAdam, False
    distrib_optimizer.Adam = FusedAdam
    distrib_optimizer.HAVE_APEX_OR_TE = distrib_optimizer.USING_APEX_OPTIMIZER = True


prepare()
