"""What runs on this rank: code, libraries, device and kernels."""

import functools
import hashlib
import importlib.metadata
import os
import platform
from pathlib import Path

import torch
import torch.cuda.nccl

import megatron_chimed
from megatron_chimed.accelerators import nvidia_driver
from megatron_chimed.kernels import OpPath, describe
from megatron_chimed.kernels.native import why_not_fused
from megatron_chimed.kernels.rms_norm import RMS_NORM

PACKAGE = Path(megatron_chimed.__file__).resolve().parent


@functools.cache
def source_digest(folder: Path = PACKAGE) -> str:
    """SHA-256 of every Python file below a folder, by relative path; 10 ms for this package."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return digest.hexdigest()


def versions(device: torch.device) -> dict[str, str]:
    """What must be the same on all ranks of a job, whatever they do.

    The instruction set of the CPU kernels is left out: processors of one job may differ.
    """
    return {
        "version of megatron_chimed": f"{megatron_chimed.__version__}, sources {source_digest()}",
        "version of torch": torch.__version__,
        "version of megatron-core": importlib.metadata.version("megatron-core"),
        "device": device.type,
        "fused kernels": why_not_fused(RMS_NORM, device.type) or "available",
    }


def environment(device: torch.device) -> dict[str, str | float]:
    """What a run reports about its machine and libraries, by name; the ranks may differ in it."""
    found: dict[str, str | float] = {
        "device": device.type,
        "python": platform.python_version(),
        "megatron_chimed": megatron_chimed.__version__,
        "megatron_core": importlib.metadata.version("megatron-core"),
        "torch": torch.__version__,
    }
    if device.type != "cuda":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        threads = torch.get_num_threads()
        found["device_name"] = f"{platform.machine()} CPU, {threads} threads"
        return found | {"device_memory_gib": round(memory / 2**30, 1), "collectives": "gloo"}
    properties = torch.cuda.get_device_properties(device)
    return found | {
        "device_name": properties.name,
        "device_memory_gib": round(properties.total_memory / 2**30, 1),
        "compute_capability": f"{properties.major}.{properties.minor}",
        "collectives": "nccl",
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        "cuda": torch.version.cuda or f"ROCm {torch.version.hip}",
        "driver": nvidia_driver() or "unknown",
    }


def op_paths(device: torch.device, backend: str) -> list[OpPath]:
    """What computes each op on a device, and why."""
    return [path for path in describe(backend) if path.device == device.type]
