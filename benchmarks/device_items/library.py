"""Loads the bundled kernels, or builds them for this device alone; builds the data extension."""

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from device_items.context import Context
from device_items.environment import ROOT
from device_items.record import Goal
from megatron_chimed.errors import KernelError
from megatron_chimed.kernels import native
from megatron_chimed.kernels.rms_norm import RMS_NORM

LOADED = "loaded"


def run(context: Context) -> None:
    """The kernels first: without them nothing that follows is worth measuring."""
    add = context.record.add
    try:
        reason = native.why_not_fused(RMS_NORM, context.device)
    except KernelError as error:  # of another version: it is replaced
        reason = str(error)
    add("bundled kernels", reason or LOADED, goal=Goal(equals=LOADED), file=str(native.LIBRARY))
    if reason or context.is_rehearsal:
        begin = time.perf_counter()
        commands = one_architecture_commands(context)
        if not context.is_rehearsal:
            _build(commands, native.LIBRARY)
        seconds = time.perf_counter() - begin
        add("kernels built for this device", seconds, "s", commands=len(commands))
    if importlib.util.find_spec("megatron_chimed._data_helpers") is not None:
        add("data extension", LOADED)
        return
    begin = time.perf_counter()
    try:
        _compile(data_extension_command(sys.executable, ROOT / "megatron_chimed"))
    except (SystemExit, ImportError) as error:  # no Python.h, no pybind11: no item needs it
        context.record.unavailable("data extension", str(error))
    else:
        add("data extension built", time.perf_counter() - begin, "s")


def one_architecture_commands(context: Context) -> dict[str, list[str]]:
    """Name -> compiler call of each object, for the compute capability of this device."""
    sys.path.insert(0, str(ROOT / "csrc"))
    from build_kernels import find_nvcc, kernel_commands

    arch = context.gpu.facts().get("compute capability", "9.0").replace(".", "")
    wanted = f"-gencode=arch=compute_{arch},code=sm_{arch}"
    commands = {}
    for name, command in kernel_commands(Path(torch.__file__).parent, find_nvcc()).items():
        kept = [flag for flag in command[:-1] if not flag.startswith("-gencode")]
        is_device_code = command[-1].endswith(".cu")
        commands[name] = [*kept, *([wanted] if is_device_code else []), command[-1]]
    return commands


def data_extension_command(python: str, folder: Path) -> list[str]:
    """The compiler call that builds csrc/data for a Python.

    Args:
        python: Its executable; it needs nothing but its headers.
        folder: Where the extension goes.
    """
    import pybind11

    ask = "import sysconfig as s; print(s.get_config_var('EXT_SUFFIX'), s.get_path('include'))"
    answer = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True)
    suffix, headers = answer.stdout.split()
    sources = sorted(str(path) for path in ROOT.glob("csrc/data/*.cpp"))
    include = [f"-I{headers}", f"-I{pybind11.get_include()}"]
    flags = ["-O3", "-std=c++17", "-shared", "-fPIC", "-fvisibility=hidden"]
    output = ["-o", str(folder / f"_data_helpers{suffix}")]
    return [os.environ.get("CXX", "g++"), *flags, *include, *sources, *output]


def _build(commands: dict[str, list[str]], output: Path) -> None:
    """Compiles all at once and links as csrc/build_kernels.py does."""
    from build_kernels import find_nvcc, link

    folder = ROOT / "build" / "one_architecture"
    folder.mkdir(parents=True, exist_ok=True)
    objects = {name: str(folder / f"{name}.o") for name in commands}
    calls = [[*command, "-o", objects[name]] for name, command in commands.items()]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_compile, calls))
    link(list(objects.values()), output, Path(torch.__file__).parent, find_nvcc())


def _compile(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command[0]} failed with {done.returncode}: {done.stderr[-2000:]}")
