"""Builds csrc/cuda for the CPU and calls its C ABI with tensors at the edge of memory."""

import ctypes
import math
import mmap
import re
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

EMULATION = Path(__file__).resolve().parent
ROOT = EMULATION.parents[3]
STREAM = 0x5EED  # an address that is not null, which every launcher must pass on
GUARD, PAGE = 32, mmap.PAGESIZE
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
KERNEL = re.compile(
    r"__launch_bounds__\((?P<threads>[^,\n]+?)(?:, [^\n]+)?\)\n\s+\w+\([^{}]*\) \{(?=\n)"
)
ERRORS = {
    9: "a launch beyond the limits of a device",
    400: "a launch on another stream than the caller's",
    701: "more threads than __launch_bounds__ promises",
    716: "an access that is not aligned to its width",
    719: "a barrier was not reached by all threads",
}
TOLERANCES = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 4e-3}


class AdamWSettings(ctypes.Structure):
    """`ChimedAdamW` of chimed_types.h."""

    _fields_ = [
        (name, ctypes.c_double)
        for name in (
            "lr",
            "beta1",
            "beta2",
            "eps",
            "weight_decay",
            "bias_correction1",
            "bias_correction2",
            "grad_scale",
        )
    ]


class RopeSide(ctypes.Structure):
    """`ChimedRope` of rope.cu."""

    _fields_ = [
        ("x", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("heads", ctypes.c_int64),
        ("token_stride", ctypes.c_int64),
        ("head_stride", ctypes.c_int64),
    ]


def build_library(folder: Path, source_folder: Path | None = None) -> ctypes.CDLL:
    """The launchers of csrc/cuda (or of a changed copy of it), running on the CPU.

    Skips where g++ cannot build them.
    """
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to build the emulation with")
    path = folder / "libemulated.so"
    source_folder = source_folder or ROOT / "csrc" / "cuda"
    sources = [
        with_bounds(source, folder / source.name) for source in sorted(source_folder.glob("*.cu"))
    ]
    objects = [folder / f"{source.stem}.o" for source in sources]
    flags = ["-std=c++17", "-O1", "-fPIC", "-Wall", "-Werror", "-Wno-unknown-pragmas"]
    flags += ["-U_FORTIFY_SOURCE"]  # it takes a switch of stacks for an overflow
    flags += ["-fsanitize=alignment", "-fcf-protection=none"]
    flags += [f"-I{EMULATION}", f"-I{source_folder}", f"-I{ROOT / 'csrc' / 'include'}"]

    def run(*arguments: str) -> None:
        command = [compiler, *arguments]
        built = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
        if "_Float16" in built.stderr:
            pytest.skip("this g++ has no _Float16: 13 or newer is needed, or 12 on x86")
        assert built.returncode == 0, built.stderr

    with ThreadPoolExecutor(2) as pool:
        pairs = zip(sources, objects, strict=True)
        list(pool.map(lambda p: run(*flags, "-c", "-x", "c++", str(p[0]), "-o", str(p[1])), pairs))
    # Without the sanitizer: its callback is the emulation's own.
    run("-shared", *map(str, objects), "-o", str(path))
    library = ctypes.CDLL(str(path))
    library.chimed_emulation_stream(ctypes.c_void_p(STREAM))
    return library


def with_bounds(source: Path, copy: Path) -> Path:
    """A copy of a source in which each kernel first checks its own `__launch_bounds__`."""
    text = KERNEL.sub(r"\g<0> emulation::at_most(\g<threads>);", source.read_text())
    assert text.count("emulation::at_most") == text.count("__global__"), f"{source.name}: no bounds"
    copy.write_text(text)
    return copy


class Guarded:
    """A tensor that ends where memory ends: reading far past it is a segmentation fault.

    It starts `offset` elements after a 32-byte boundary. What lies around it is NaN and must stay.
    """

    def __init__(self, source: torch.Tensor | tuple, dtype=None, *, offset: int = 0) -> None:
        shape = tuple(source.shape) if isinstance(source, torch.Tensor) else source
        dtype = source.dtype if isinstance(source, torch.Tensor) else dtype
        self.size = math.prod(shape)
        usable = -(-(self.size + offset + GUARD) * dtype.itemsize // PAGE) * PAGE
        memory = torch.frombuffer(mmap.mmap(-1, usable + PAGE), dtype=torch.uint8)
        libc = ctypes.CDLL(None)
        assert libc.mprotect(ctypes.c_void_p(memory.data_ptr() + usable), PAGE, 0) == 0
        self.whole = memory[:usable].view(dtype)
        self.whole.fill_(math.nan if dtype.is_floating_point else 1)
        aligned = 32 // dtype.itemsize  # elements; the widest access is 32 bytes
        self.start = (self.whole.numel() - offset - self.size) // aligned * aligned + offset
        self.view = self.whole[self.start : self.start + self.size].view(shape)
        if isinstance(source, torch.Tensor):
            self.view.copy_(source)
        self.before = self.whole.clone()

    @property
    def address(self) -> ctypes.c_void_p:
        return ctypes.c_void_p(self.view.data_ptr())

    def checked(self) -> torch.Tensor:
        """A copy of the tensor, once what surrounds it is seen to be untouched."""
        now, before = self.whole.clone(), self.before.clone()
        now[self.start : self.start + self.size] = 0
        before[self.start : self.start + self.size] = 0
        assert torch.equal(now.view(torch.uint8), before.view(torch.uint8)), "wrote elsewhere"
        return self.view.clone()


def call(library, name: str, *arguments) -> None:
    """Runs `chimed_cuda_<name>` on `STREAM`.

    Tensors are passed by address, integers as int64, floats as float.
    """
    converted = []
    for argument in arguments:
        if hasattr(argument, "address"):
            converted.append(argument.address)
        elif isinstance(argument, torch.dtype | bool):
            converted.append(ctypes.c_int(CODES.get(argument, int(argument is True))))
        elif isinstance(argument, int):
            converted.append(ctypes.c_int64(argument))
        elif isinstance(argument, float):
            converted.append(ctypes.c_float(argument))
        else:
            converted.append(argument)
    error = getattr(library, f"chimed_cuda_{name}")(*converted, ctypes.c_void_p(STREAM))
    assert error == 0, f"{name} returned {error}: {ERRORS.get(error, 'see cuda_runtime.h')}"


def in_both_orders(library, run: Callable[[], list[torch.Tensor]]) -> list[torch.Tensor]:
    """What `run` gives, which may not depend on the order of threads and blocks."""
    library.chimed_emulation_reverse(0)
    forward = run()
    library.chimed_emulation_reverse(1)
    backward = run()
    library.chimed_emulation_reverse(0)
    for one, other in zip(forward, backward, strict=True):
        assert torch.equal(
            one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8)
        ), "the result depends on the order of the threads: a barrier is missing"
    return forward


def assert_close(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    assert not actual.isnan().any(), "not written, or made from what lies beyond the input"
    error = (actual.double() - expected).norm()
    assert error <= TOLERANCES[dtype] * expected.norm() + 1e-30, f"{error / expected.norm():.2e}"


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + 17 * sum(shape))
    return torch.randn(shape, generator=generator).to(dtype)
