"""The device of this process: GPU or CPU, decided once, with the reason where a GPU is not usable.

`use_device` decides at the start of a command, before anything touches CUDA. If the CPU is chosen
on a machine with CUDA, torch is told that there is none (`cpu`), so that this code, megatron-core
and the kernels all find the same in `torch.cuda.is_available()`.
"""

import os

import torch

from megatron_chimed.accelerators import (
    ASCEND,
    NVIDIA,
    SUPPORTED,
    UNTRIED,
    Accelerators,
    find_accelerators,
    foreign_torch,
    rocm_advice,
    why_no_cuda,
    why_no_rocm,
)
from megatron_chimed.engine.cpu import enable_cpu
from megatron_chimed.errors import ConfigError, warn

LARGE_MODEL = 1_000_000_000
"""Parameters from which training on the CPU of a machine with GPUs is refused as a mistake."""

DETERMINISTIC_WORKSPACES = (":4096:8", ":16:8")
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def uses_cuda() -> bool:
    """Whether tensors of this process live on a GPU."""
    return torch.cuda.is_available()


def local_device(local_rank: int) -> torch.device:
    """The device of this rank: its own GPU, or the CPU."""
    return torch.device("cuda", local_rank) if uses_cuda() else torch.device("cpu")


def set_connections() -> None:
    """Gives CUDA one queue to the device, as megatron-core's layers expect; call it before CUDA.

    With tensor parallelism they launch a collective and then a product, and rely on that order to
    overlap the two: several queues may start the product first. A value that is set already stays.
    """
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")


def use_device(
    wish: str, *, local_rank: int = 0, num_parameters: int = 0, deterministic: bool = False
) -> None:
    """Decides between GPU and CPU for this process, or refuses.

    Args:
        wish: `auto`: a GPU where torch can use one; `cuda`: a GPU or an error; `rocm`: an AMD GPU,
            on which nothing was tried, or an error; `cpu`.
        local_rank: Index of this rank on its host.
        num_parameters: Of the model; with `auto`, a large one is not left to the CPU of a machine
            with GPUs.
        deterministic: GPU products must be reproducible: cuBLAS gets its fixed workspace.

    Raises:
        ConfigError: The wish cannot be granted; there are more ranks than GPUs; the GPU is of a
            kind that is not supported; or CUDA was started before its workspace could be set.
    """
    if wish == "cpu":
        enable_cpu()
        return
    if wish == "rocm":
        _use_rocm(local_rank, deterministic=deterministic)
        return
    reason = why_no_cuda()
    if not reason:
        _require_own_gpu(local_rank)
        if deterministic:
            _fix_workspace()
        return
    if wish == "cuda":
        raise ConfigError(
            f"device is cuda, but {reason}. Or set `device: cpu` if this run is meant for the CPU."
        )
    found = find_accelerators()
    if foreign := foreign_torch() or _ascend(found):
        raise ConfigError(
            f"{foreign}, on which this project does not train: {SUPPORTED}{rocm_advice()}. Set "
            "`device: cpu` to use the CPU of this machine."
        )
    if found:
        _warn_about_idle(found, reason, num_parameters)
    enable_cpu()


def _use_rocm(local_rank: int, *, deterministic: bool) -> None:
    """Takes an AMD GPU, which torch calls cuda, with a warning that cannot be silenced."""
    if reason := why_no_rocm():
        raise ConfigError(f"device is rocm, but {reason}. Set `device: cuda`, `cpu` or `auto`.")
    if deterministic:
        raise ConfigError(
            "training.deterministic is only known to hold on NVIDIA GPUs and CPUs: leave it out "
            "with `device: rocm`."
        )
    _require_own_gpu(local_rank)
    warn(
        f"device is rocm: {UNTRIED}. Before you trust a run, compare its losses with those of the "
        "same run on the CPU (`device: cpu`) in fp32."
    )


def _ascend(found: list[Accelerators]) -> str:
    shown = [a.evidence for a in found if a.vendor == ASCEND]
    return f"this machine has Ascend NPUs ({shown[0]})" if shown else ""


def _require_own_gpu(local_rank: int) -> None:
    ranks = max(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), local_rank + 1)
    gpus = torch.cuda.device_count()
    if ranks <= gpus:
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    hidden = "" if visible is None else f" (CUDA_VISIBLE_DEVICES is {visible!r})"
    raise ConfigError(
        f"{ranks} ranks run on this host, which shows {gpus} "
        f"GPU{'s' if gpus != 1 else ''}{hidden}, and each rank needs its own. Start {gpus} ranks "
        "(--nproc-per-node), make more GPUs visible, or set `device: cpu`."
    )


def _fix_workspace() -> None:
    """Sets what cuBLAS reads when it is first used; without it, its products may differ by run."""
    set_already = os.environ.get(WORKSPACE)
    if set_already in DETERMINISTIC_WORKSPACES:
        return
    if set_already is not None or torch.cuda.is_initialized():
        what = "CUDA was started without it" if set_already is None else f"it is {set_already!r}"
        raise ConfigError(
            f"training.deterministic needs {WORKSPACE} to be {DETERMINISTIC_WORKSPACES[0]} before "
            f"the first product on the GPU, but {what}. Start the command with "
            f"{WORKSPACE}={DETERMINISTIC_WORKSPACES[0]}."
        )
    os.environ[WORKSPACE] = DETERMINISTIC_WORKSPACES[0]


def require_workspace(device: torch.device) -> None:
    """Refuses deterministic training whose products on a GPU may differ from run to run.

    Raises:
        ConfigError: This process did not set cuBLAS's workspace in `use_device`.
    """
    if device.type == "cuda":
        _fix_workspace()


def _warn_about_idle(found: list[Accelerators], reason: str, num_parameters: int) -> None:
    """Reports GPUs that this run would leave idle.

    Raises:
        ConfigError: The model is so large that it is certainly not meant for the CPU.
    """
    shown = ", ".join(f"{a.vendor} ({a.evidence})" for a in found)
    if all(a.vendor != NVIDIA for a in found):
        reason = SUPPORTED
    if num_parameters > LARGE_MODEL:
        raise ConfigError(
            f"this machine has GPUs, {shown}, but torch cannot use them, and a model of "
            f"{num_parameters / 1e9:.1f}B parameters would take months on its CPU: {reason}. Set "
            "`device: cpu` if you insist on the CPU."
        )
    warn(
        f"this machine has GPUs, {shown}, but this run uses the CPU: {reason}. Set "
        "`device: cuda` to make this an error, `device: cpu` to silence it."
    )
