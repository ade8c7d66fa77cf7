"""What runs on this rank: code, libraries, device and kernels."""

import functools
import hashlib
import importlib.metadata
from pathlib import Path

import torch

import megatron_chimed
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
