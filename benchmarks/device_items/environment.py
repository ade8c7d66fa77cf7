"""Versions of everything that a figure depends on, and what is missing."""

import importlib.metadata
import importlib.util
import platform
import re
import shutil
import subprocess
from pathlib import Path

import torch

from device_items.context import Context
from megatron_chimed.errors import KernelError
from megatron_chimed.kernels import describe, native

ROOT = Path(__file__).resolve().parents[2]
QUERY = "name,driver_version,memory.total,clocks.sm,clocks.mem,power.limit,temperature.gpu"


def run(context: Context) -> None:
    """Nothing here may fail: what is absent is a row too."""
    add = context.record.add
    add("GPU", context.gpu.name(), **context.gpu.facts())
    add("torch", torch.__version__, cuda=torch.version.cuda, cudnn=torch.backends.cudnn.version())
    add("python", platform.python_version(), machine=platform.machine())
    add("nccl", ".".join(map(str, _nccl())) or None)
    for name, command in _tools().items():
        context.record.add(name, _first_line(command))
    for name in requirements():
        try:
            add(name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            context.record.unavailable(name, "not installed")
    try:
        add("kernel library", native.load_library() or "loaded")
        paths = describe()
    except KernelError as error:  # of another version: the item `library` replaces it
        add("kernel library", str(error))
        paths = []
    for path in paths:
        if path.device == context.device:
            add(path.op, path.path, reason=path.reason)


def requirements() -> list[str]:
    """Names of the packages that setup.py requires, and of the baselines."""
    source = (ROOT / "setup.py").read_text(encoding="utf-8")
    block = source.split("REQUIREMENTS = [", 1)[1].split("]", 1)[0]
    return [*re.findall(r'^    "([A-Za-z0-9_-]+)', block, flags=re.MULTILINE), "liger-kernel"]


def _nccl() -> tuple[int, ...]:
    return torch.cuda.nccl.version() if torch.cuda.is_available() else ()


def _tools() -> dict[str, list[str]]:
    return {
        "nvidia-smi": ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"],
        "nvcc": ["nvcc", "--version"],
        "g++": ["g++", "--version"],
        "compute-sanitizer": ["compute-sanitizer", "--version"],
        "commit": ["git", "-C", str(ROOT), "describe", "--always", "--dirty"],
    }


def _first_line(command: list[str]) -> str:
    """What a tool says of itself; nvcc's release is in its fourth line."""
    if shutil.which(command[0]) is None:
        return "not on PATH"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"did not answer: {error}"
    lines = [line.strip() for line in (done.stdout or done.stderr).splitlines() if line.strip()]
    release = [line for line in lines if "release" in line]
    return (release or lines or [f"exit code {done.returncode}"])[0]
