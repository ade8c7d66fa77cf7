"""Loads the bundled kernels, or builds them for this device alone; builds the data extension."""

import importlib.util
import os
import sys
import sysconfig
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from device_items.context import Context
from device_items.environment import ROOT
from device_items.record import Goal
from megatron_chimed.kernels import native
from megatron_chimed.kernels.rms_norm import RMS_NORM

LOADED = "loaded"


def run(context: Context) -> None:
    """The kernels first: without them nothing that follows is worth measuring."""
    add = context.record.add
    reason = native.why_not_fused(RMS_NORM, context.device)
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
    _compile(data_extension_command())
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


def data_extension_command() -> list[str]:
    """The compiler call that builds csrc/data for this Python."""
    import pybind11

    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    sources = sorted(str(path) for path in ROOT.glob("csrc/data/*.cpp"))
    include = [f"-I{sysconfig.get_path('include')}", f"-I{pybind11.get_include()}"]
    output = ROOT / "megatron_chimed" / f"_data_helpers{suffix}"
    flags = ["-O2", "-std=c++17", "-shared", "-fPIC", "-fvisibility=hidden"]
    return [os.environ.get("CXX", "g++"), *flags, *include, *sources, "-o", str(output)]


def _build(commands: dict[str, list[str]], output: Path) -> None:
    """Compiles all at once and links as csrc/build_kernels.py does."""
    from build_kernels import find_nvcc

    folder = ROOT / "build" / "one_architecture"
    folder.mkdir(parents=True, exist_ok=True)
    objects = {name: str(folder / f"{name}.o") for name in commands}
    calls = [[*command, "-o", objects[name]] for name, command in commands.items()]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_compile, calls))
    nvcc, lib = find_nvcc(), Path(torch.__file__).parent / "lib"
    linker = [nvcc, "-cudart=static", "-nodlink"] if nvcc else [os.environ.get("CXX", "g++")]
    libraries = ["-Xlinker", "--no-as-needed", f"-L{lib}", "-ltorch", "-ltorch_cpu"]
    _compile([*linker, "-shared", "-o", str(output), *objects.values(), *libraries])


def _compile(command: Sequence[str]) -> None:
    from build_kernels import run_compiler

    run_compiler(list(command))
