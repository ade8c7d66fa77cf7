"""The accelerators of this host: what its system shows, and why torch cannot use a GPU here."""

import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

NVIDIA, AMD, ASCEND = "NVIDIA", "AMD", "Ascend"
SUPPORTED = "supported are NVIDIA GPUs of compute capability 8.0 and later, and CPUs"
UNTRIED = (
    "nothing of this project has ever run on an AMD GPU or a DCU: neither its Triton kernels nor "
    "attention nor RCCL, so no number from there is known to be right"
)
_SMI_SECONDS = 20.0  # a driver without its persistence daemon takes seconds to answer


@dataclass(frozen=True, kw_only=True)
class Accelerators:
    """Accelerators of one vendor."""

    vendor: str
    """`NVIDIA`, `AMD` or `Ascend`."""
    evidence: str
    """What shows them, such as `/dev/nvidia0`."""


def find_accelerators(root: Path = Path("/")) -> list[Accelerators]:
    """The accelerators that drivers of this host have registered, one entry for each vendor.

    Args:
        root: Where `dev` and `proc` are.
    """
    patterns = {
        # A container without its GPUs still sees the driver of its host below /proc.
        NVIDIA: ("dev/nvidia[0-9]*", "proc/driver/nvidia/gpus/*"),
        AMD: ("dev/kfd",),
        ASCEND: ("dev/davinci[0-9]*",),
    }
    found = []
    for vendor, shown in patterns.items():
        paths = [path for pattern in shown for path in sorted(root.glob(pattern))]
        evidence = str(paths[0]) if paths else _listed_by_smi() if vendor == NVIDIA else ""
        if evidence:
            found.append(Accelerators(vendor=vendor, evidence=evidence))
    return found


def nvidia_driver(root: Path = Path("/")) -> str:
    """Version of NVIDIA's kernel driver, such as `570.124.06`; empty without one."""
    try:
        text = (root / "proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    match = re.search(r"Kernel Module.*?(\d+\.\d+(?:\.\d+)?)", text)
    return match.group(1) if match else ""


def _listed_by_smi() -> str:
    """The first GPU that nvidia-smi lists, for systems without device files, such as WSL."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return ""
    try:
        done = subprocess.run(
            [command, "-L"], capture_output=True, text=True, timeout=_SMI_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    first = done.stdout.partition("\n")[0].strip()
    return f"nvidia-smi: {first}" if first.startswith("GPU ") else ""


def why_no_cuda() -> str:
    """Why torch cannot use a GPU here, with how to fix it; '' if it can."""
    import torch

    if foreign := foreign_torch():
        return f"{foreign}; {SUPPORTED}{rocm_advice()}"
    if torch.version.cuda is None:
        return (
            f"torch {torch.__version__} is a build without CUDA: install one with CUDA (make "
            "install TORCH_INDEX=URL of an index with CUDA builds)"
        )
    if not torch.cuda.is_available():
        return _why_not_available()
    return _why_not_compiled()


def foreign_torch() -> str:
    """What of torch is made for GPUs or NPUs other than NVIDIA's; '' if nothing is."""
    import torch

    if torch.version.hip is not None:
        return f"torch {torch.__version__} is built for AMD GPUs (ROCm {torch.version.hip})"
    if importlib.util.find_spec("torch_npu") is not None:
        return "torch_npu is installed, which is for Ascend NPUs"
    return ""


def rocm_advice() -> str:
    """What to do with a torch for AMD GPUs, to be added to a refusal; '' with any other."""
    import torch

    if torch.version.hip is None:
        return ""
    return f"; {UNTRIED}. To try it all the same, set `device: rocm`"


def why_no_rocm() -> str:
    """Why torch cannot use an AMD GPU here; '' if it can."""
    import torch

    if torch.version.hip is None:
        return f"torch {torch.__version__} is not built for ROCm"
    if not torch.cuda.is_available():
        said = _said_by_torch() or "no GPU is visible"
        return f"torch {torch.__version__} for ROCm {torch.version.hip} cannot use a GPU: {said}"
    return ""


def _why_not_available() -> str:
    import torch

    about = f"torch {torch.__version__} for CUDA {torch.version.cuda} cannot use a GPU"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1", "NoDevFiles"):
        return f"{about}: CUDA_VISIBLE_DEVICES is {visible!r}, which hides all: unset it"
    driver = nvidia_driver()
    about += f"; the driver is {driver}" if driver else "; no NVIDIA driver is loaded"
    if visible is not None:
        about += f"; CUDA_VISIBLE_DEVICES is {visible!r}"
    said = _said_by_torch()
    if "too old" in said:
        said += " Update the driver, or install a torch for an older CUDA"
    return f"{about}: {said or 'torch does not say why; see docs/gpu.md'}".rstrip(".")


def _said_by_torch() -> str:
    """The first sentence or two of torch's own error."""
    import torch

    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return " ".join(str(error).split(" Please update")[0].split())
    return ""


def _why_not_compiled() -> str:
    """Why torch holds no code for one of the GPUs; '' if it has code for all."""
    import torch

    listed = " ".join(torch.cuda.get_arch_list())
    compiled = [int(number) for number in re.findall(r"sm_(\d+)", listed)]  # 90 for 9.0
    newest_source = max(map(int, re.findall(r"compute_(\d+)", listed)), default=0)
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        wanted = 10 * major + minor
        runs = any(wanted // 10 == each // 10 and wanted >= each for each in compiled)
        if compiled and not runs and not 0 < newest_source <= wanted:
            known = ", ".join(f"{each // 10}.{each % 10}" for each in compiled)
            is_old = wanted < min(compiled)
            return (
                f"GPU {index} ({torch.cuda.get_device_name(index)}) has compute capability "
                f"{major}.{minor}, and torch {torch.__version__} is compiled for {known}: install "
                f"a torch for {'an older' if is_old else 'a newer'} CUDA, or hide this GPU with "
                "CUDA_VISIBLE_DEVICES"
            )
    return ""
