"""Every CUDA source compiles for A100 and H100 without warnings, spills or stack, and links.

Needs nvcc and no GPU. What the kernels compute is tested by test_cuda_emulation.py.
"""

import ctypes
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
ARCHITECTURES = ("80", "90")
# A register that does not fit goes to memory, which is what these kernels are short of. None does.
SPILL_ALLOWANCE_BYTES = 0
ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<arch>sm_\d+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers"
    r"(?:[^\n]*?(?P<shared>\d+) bytes smem)?",
    re.DOTALL,
)


class Kernel(NamedTuple):
    """What ptxas says of one kernel."""

    name: str
    arch: str
    spilled: int
    stack: int
    registers: int
    shared: int
    """Bytes for a block, all of them static."""


def find_nvcc() -> str:
    beside = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin" / "nvcc"
    nvcc = shutil.which("nvcc") or shutil.which(beside)
    if nvcc is None:
        pytest.skip(f"no CUDA compiler: nvcc is neither on PATH nor at {beside}")
    return nvcc


class Build(NamedTuple):
    kernels: list[Kernel]
    objects: list[Path]


@pytest.fixture(scope="module")
def build(tmp_path_factory) -> Build:
    """All sources, compiled two at a time as the package's own build does."""
    nvcc, folder = find_nvcc(), tmp_path_factory.mktemp("cuda")
    codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHITECTURES]
    flags = ["-c", "-O3", "-std=c++17", f"-I{ROOT / 'csrc' / 'include'}", "-Xptxas=-v"]
    flags += ["-Werror=all-warnings", "-Xcompiler=-fPIC,-Wall,-Werror"]

    def compile_one(source: Path) -> tuple[Path, str]:
        output = folder / f"{source.stem}.o"
        command = [nvcc, *flags, *codes, str(source), "-o", str(output)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, f"{source.name}:\n{done.stdout}{done.stderr}"
        return output, done.stdout + done.stderr

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(compile_one, SOURCES))
    kernels = [
        Kernel(
            match["name"],
            match["arch"],
            int(match["stores"]) + int(match["loads"]),
            int(match["stack"]),
            int(match["registers"]),
            int(match["shared"] or 0),
        )
        for _, report in results
        for match in ENTRY.finditer(report)
    ]
    return Build(kernels, [output for output, _ in results])


def test_every_kernel_is_compiled_for_both_architectures(build):
    families = ("rms_norm_forward", "rms_norm_backward", "sum_partials", "swiglu_forward")
    families += ("swiglu_backward", "rope", "cross_entropy_stats", "cross_entropy_backward")
    families += ("softmax_forward", "softmax_backward", "adamw", "l2_norm_partials")
    for arch in ARCHITECTURES:
        names = [kernel.name for kernel in build.kernels if kernel.arch == f"sm_{arch}"]
        missing = [family for family in families if not any(family in name for name in names)]
        assert not missing, f"sm_{arch} lacks {missing}"


def test_nothing_spills(build):
    spilled = [kernel for kernel in build.kernels if kernel.spilled > SPILL_ALLOWANCE_BYTES]
    assert not spilled
    assert not [kernel for kernel in build.kernels if kernel.stack > 0]


def test_shared_memory_is_what_every_device_grants(build):
    """Beyond 48 KiB a kernel needs an attribute, which no launcher sets, and would not start.

    The most is l2_norm's last block, 1024 doubles; kernels of many blocks have a tile of 32 x 33
    floats, or 32 values for a reduction, so that registers alone limit the blocks.
    """
    shared = {kernel.shared for kernel in build.kernels if "l2_norm_finish" not in kernel.name}
    assert {kernel.shared for kernel in build.kernels} - shared == {1024 * 8}
    assert 0 < max(shared) <= 32 * 33 * 4


def test_the_norm_backward_asks_for_the_next_row_before_it_waits(tmp_path):
    ptx = tmp_path / "rms_norm.ptx"
    command = [find_nvcc(), "-ptx", "-O3", "-std=c++17", f"-I{ROOT / 'csrc' / 'include'}"]
    command += ["-arch=compute_90", str(ROOT / "csrc" / "cuda" / "rms_norm.cu"), "-o", str(ptx)]
    subprocess.run(command, check=True, timeout=200)
    bodies = re.split(r"\n\.visible \.entry |\n\.entry |\n\t?// \.globl", ptx.read_text())
    found = [b for b in bodies if re.match(r"\S*17rms_norm_backwardI", b) and "bar.sync" in b]
    assert len(found) == 18  # 3 dtypes, with and without the add, 1, 2 or 4 vectors per thread
    for body in found:
        assert 0 < body.find("prefetch.global.L2") < body.find("bar.sync")


def test_the_norm_backward_leaves_room_for_three_blocks(build):
    """h = 5120 in 16 bits: 320 threads with 2 vectors each; 65536 registers / 3 / 320 = 68."""
    # In the mangled name a template argument `2` after the type reads `Li2E`.
    kernels = [k for k in build.kernels if re.search(r"17rms_norm_backwardI\w*Li2E", k.name)]
    assert len(kernels) == 12  # 3 dtypes, with and without the add, 2 architectures
    assert max(kernel.registers for kernel in kernels) <= 64


def test_links_and_reports_an_error_without_a_device(build, tmp_path):
    """The launchers form one library; a launch that cannot happen says so instead of crashing."""
    library = tmp_path / "libcuda_kernels.so"
    command = [find_nvcc(), "-shared", "-cudart=static", *map(str, build.objects), "-o"]
    done = subprocess.run(
        [*command, str(library)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    loaded = ctypes.CDLL(str(library))
    loaded.chimed_cuda_error_string.restype = ctypes.c_char_p
    unknown_dtype, no_rows = ctypes.c_int(7), ctypes.c_int64(0)
    nothing = ctypes.c_void_p(None)
    width = ctypes.c_int64(8)
    refused = loaded.chimed_cuda_swiglu_forward(
        unknown_dtype, nothing, nothing, no_rows, width, nothing
    )
    assert b"invalid argument" in loaded.chimed_cuda_error_string(refused)
    fp32 = ctypes.c_int(0)
    assert loaded.chimed_cuda_swiglu_forward(fp32, nothing, nothing, no_rows, width, nothing) == 0
