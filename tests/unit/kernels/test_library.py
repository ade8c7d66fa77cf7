"""The library of kernels: whether it fits this package, and how it is built."""

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_chimed.errors import KernelError
from megatron_chimed.kernels import interface, native
from tests.unit.kernels.test_native import defined_ops

ROOT = Path(__file__).resolve().parents[3]


def test_a_missing_library_and_a_broken_one_give_a_reason(tmp_path):
    absent = tmp_path / "_kernels.so"
    assert native.load_library(absent) == "_kernels.so is not built: run `make install`"
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"no library, but " + interface.MARK + interface.expected_digest().encode())
    assert "broken.so does not load: " in native.load_library(broken)
    assert "invalid ELF header" in native.load_library(broken)


@pytest.mark.parametrize(
    ("stamp", "found"),
    [
        (b"", "was built before they were numbered"),
        (b"chimed interface 0123456789abcdef", "has interface 0123456789ab"),
    ],
)
def test_a_library_of_another_version_is_refused_before_it_runs(tmp_path, stamp, found):
    """Loading it, or calling its ops with other arguments, would end the process."""
    old = tmp_path / "_kernels.so"
    old.write_bytes(b"code" + stamp)
    with pytest.raises(KernelError, match=re.escape(found)) as caught:
        native.load_library(old)
    said = str(caught.value)
    assert said.startswith(f"{old} does not fit this version of megatron_chimed: it ")
    assert interface.expected_digest()[:12] in said and "Run `make install`" in said


def test_the_stamp_is_of_every_schema(tmp_path):
    digest = interface.expected_digest()
    assert interface.stored_digest(native.LIBRARY) == digest
    folder = tmp_path / "kernels"
    shutil.copytree(Path(native.__file__).parent, folder)
    assert interface.expected_digest(folder) == digest
    assert {s.partition("(")[0] for s in interface._schemas(folder)} == defined_ops()
    norm = folder / "rms_norm.py"
    norm.write_text(norm.read_text().replace("weight, float eps", "weight, float epsilon"))
    assert interface.expected_digest(folder) != digest


def test_the_stamp_can_be_compiled_and_found(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "csrc")
    build_kernels = importlib.import_module("build_kernels")
    commands = []
    expected = build_kernels.load_interface()
    monkeypatch.setattr(build_kernels, "load_interface", lambda: expected)
    monkeypatch.setattr(build_kernels, "ROOT", tmp_path)
    monkeypatch.setattr(build_kernels, "run_compiler", commands.append)
    output = build_kernels.compile_stamp()
    ((*_, source, _, made),) = commands
    assert made == output
    assert interface.stored_digest(Path(source)) == interface.expected_digest()


@pytest.mark.parametrize(
    ("changed", "rebuilt"),
    [
        ("include/types.h", {"bind/cpu_ops.cpp", "cpu/kernels.cpp", "cuda/foo.cu"}),
        ("bind/tensors.h", {"bind/cpu_ops.cpp"}),
        ("cpu/foo.h", {"bind/cpu_ops.cpp", "cpu/kernels.cpp"}),
        ("cuda/foo.cu", {"bind/cpu_ops.cpp", "cuda/foo.cu"}),
        ("data/other.cpp", set()),
    ],
)
def test_a_changed_file_rebuilds_what_may_include_it(tmp_path, monkeypatch, changed, rebuilt):
    monkeypatch.syspath_prepend(ROOT / "csrc")
    build_kernels = importlib.import_module("build_kernels")
    sources = ["bind/cpu_ops.cpp", "cpu/kernels.cpp", "cuda/foo.cu"]
    for name in [*sources, "include/types.h", "bind/tensors.h", "cpu/foo.h", "data/other.cpp"]:
        (tmp_path / "csrc" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "csrc" / name).touch()
    future = Path(build_kernels.__file__).stat().st_mtime + 1e6
    for name in sources:
        made = tmp_path / "build" / "kernels" / f"{Path(name).stem}.o"
        made.parent.mkdir(parents=True, exist_ok=True)
        made.touch()
        os.utime(made, (future, future))
    os.utime(tmp_path / "csrc" / changed, (future + 1, future + 1))
    commands = []
    monkeypatch.setattr(build_kernels, "ROOT", tmp_path)
    monkeypatch.setattr(build_kernels, "run_compiler", commands.append)
    for name in sources:
        build_kernels.compile_object(Path(name).stem, ["cc", f"csrc/{name}"])
    assert {command[1].removeprefix("csrc/") for command in commands} == rebuilt


@pytest.mark.parametrize(
    ("gpu", "nvcc", "warns"),
    [("dev/nvidia0", None, True), ("dev/nvidia0", "nvcc", False), ("dev/null", None, False)],
)
def test_gpus_that_are_left_without_kernels_are_told_at_install(
    tmp_path, monkeypatch, gpu, nvcc, warns
):
    monkeypatch.syspath_prepend(ROOT / "csrc")
    build_kernels = importlib.import_module("build_kernels")
    (tmp_path / gpu).parent.mkdir(parents=True)
    (tmp_path / gpu).touch()
    monkeypatch.setattr(build_kernels, "find_nvcc", lambda: nvcc)
    said = build_kernels.warning_without_nvcc(tmp_path)
    assert ("`BUILD_CUDA=1 make -B install`" in said) is warns
    assert bool(said) is warns
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert "python csrc/build_kernels.py" in makefile, "pip does not show what a build prints"


def test_the_build_refuses_a_wish_it_cannot_grant(tmp_path):
    source = "import build_kernels; build_kernels.find_nvcc()"
    results = {}
    for wish in ("1", "yes"):
        results[wish] = subprocess.run(
            [sys.executable, "-c", source],
            cwd=ROOT / "csrc",
            env={"PATH": str(tmp_path), "CUDA_HOME": str(tmp_path), "BUILD_CUDA": wish},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert "BUILD_CUDA=1, but nvcc is neither on PATH nor at" in results["1"].stderr
    assert "BUILD_CUDA='yes', but it is 0, 1 or unset" in results["yes"].stderr
    assert all(result.returncode == 1 for result in results.values())
