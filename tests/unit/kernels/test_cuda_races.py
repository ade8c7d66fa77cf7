"""No two threads of a block access shared memory without a barrier between them.

`cuda_threads/` runs each CUDA thread as a thread of the host, and g++'s ThreadSanitizer compiles
the `.cu` files unchanged. It finds a race by the order that barriers make, whatever the threads did
in time. A barrier is shown to be necessary by taking it away.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
CUDA = HERE.parents[2] / "csrc" / "cuda"
INCLUDE = CUDA.parent / "include"
BARRIER = "__syncthreads();"
FAMILIES = {
    "NORM": "rms_norm",
    "ENTROPY": "cross_entropy",
    "SOFTMAX": "softmax",
    "L2": "l2_norm",
    "ADAMW": "adamw",
}
# Each barrier of csrc/cuda, and a family in which its absence shows.
BARRIERS = [
    ("NORM", "device.cuh", 0),  # a second reduction writes what the first one reads
    ("NORM", "device.cuh", 1),
    ("ENTROPY", "device.cuh", 1),
    ("SOFTMAX", "device.cuh", 1),
    ("L2", "device.cuh", 1),
    ("NORM", "rms_norm.cu", 0),
    ("SOFTMAX", "softmax.cu", 0),
    ("L2", "l2_norm.cu", 0),
]


def build(family: str, folder: Path, sources: Path) -> Path:
    """The program that runs a family; skips without ThreadSanitizer."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to build with")
    output = folder / family.lower()
    flags = ["-std=c++17", "-O1", "-g", "-fsanitize=thread", "-Wno-unknown-pragmas", f"-D{family}"]
    flags += [f'-DFILE_UNDER_TEST="{sources / FAMILIES[family]}.cu"', f"-I{HERE / 'cuda_threads'}"]
    flags += [f"-I{HERE / 'cuda_emulation'}", f"-I{INCLUDE}", f"-I{sources}"]
    command = [compiler, *flags, str(HERE / "cuda_threads" / "main.cpp"), "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    if "-ltsan" in done.stderr or "libtsan" in done.stderr:
        pytest.skip("this g++ has no ThreadSanitizer")
    if "_Float16" in done.stderr:
        pytest.skip("this g++ has no _Float16: 13 or newer is needed, or 12 on x86")
    assert done.returncode == 0, done.stderr
    return output


def run(program: Path) -> tuple[int, str]:
    """Exit code (66 after a race) and report."""
    done = subprocess.run(
        [str(program)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={"TSAN_OPTIONS": "halt_on_error=1 exitcode=66"},
    )
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("ThreadSanitizer cannot map its memory on this kernel (vm.mmap_rnd_bits)")
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_no_race(tmp_path, family):
    code, report = run(build(family, tmp_path, CUDA))
    assert (code, report) == (0, "launchers returned 0\n")


def test_every_barrier_is_listed():
    listed = {(file, index) for _, file, index in BARRIERS}
    found = {
        (path.name, index)
        for path in CUDA.iterdir()
        for index in range(path.read_text().count(BARRIER))
    }
    assert listed == found


@pytest.mark.full
@pytest.mark.parametrize(("family", "file", "index"), BARRIERS)
def test_a_missing_barrier_is_a_race(tmp_path, family, file, index):
    sources = tmp_path / "cuda"
    shutil.copytree(CUDA, sources)
    text = (sources / file).read_text()
    place = [match.start() for match in re.finditer(re.escape(BARRIER), text)][index]
    (sources / file).write_text(text[:place] + text[place + len(BARRIER) :])
    code, report = run(build(family, tmp_path, sources))
    assert code == 66 and "data race" in report, report
