"""The accelerators that the operating system of this host shows, whatever torch can do with them.

Nothing here imports torch: the question is what a run would leave idle if it used the CPU.
"""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

NVIDIA, AMD, ASCEND = "NVIDIA", "AMD", "Ascend"
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
