"""Tensors of more than 2^32 elements, of which only the last two rows exist in memory.

An offset of 32 bits would reach other rows: the result is compared, bit for bit, with that of a
tensor that has no other rows than those two.
"""

import ctypes
import math
import mmap
from collections.abc import Callable

import torch

from tests.unit.kernels.cuda_emulation.harness import AdamWSettings, RopeSide, call, random

MAP_NORESERVE = 0x4000  # Linux; Python names it from 3.13 on
LAST = 2
H = 8192
ROWS = (1 << 32) // H + LAST


class Sparse:
    """Zeros without memory but for what is written: [rows, ..]; `offset` elements unaligned."""

    def __init__(self, rows: int, *shape: int, dtype: torch.dtype, offset: int = 0) -> None:
        size = rows * math.prod(shape)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        memory = mmap.mmap(-1, (size + offset) * dtype.itemsize, flags=flags)
        whole = torch.frombuffer(memory, dtype=dtype)
        self.view = whole[offset : offset + size].view(rows, *shape)
        self.size = size

    @property
    def address(self) -> ctypes.c_void_p:
        """Of the first element."""
        return ctypes.c_void_p(self.view.data_ptr())

    def filled(self, *, seed: int) -> "Sparse":
        """Itself, with random numbers in its last rows."""
        values = random(*self.view[-LAST:].shape, dtype=self.view.dtype, seed=seed)
        self.view[-LAST:] = values
        return self

    def last(self) -> torch.Tensor:
        """A copy of the last rows."""
        return self.view[-LAST:].clone()


def norm(library, rows: int, offset: int) -> list[torch.Tensor]:
    """Both passes of the norm with the residual add; each block of the backward takes one row."""
    bf16, fp32 = torch.bfloat16, torch.float32
    x, residual, dy, dsummed = (
        Sparse(rows, H, dtype=bf16, offset=offset).filled(seed=s) for s in range(4)
    )
    weight = Sparse(2, H // 2, dtype=bf16, offset=offset).filled(seed=4)
    y, summed, dx = (Sparse(rows, H, dtype=bf16, offset=offset) for _ in range(3))
    rstd, dweight = Sparse(rows, dtype=fp32), Sparse(1, H, dtype=bf16, offset=offset)
    partials = Sparse(rows, H, dtype=fp32)
    sizes = (rows, H)
    call(library, "rms_norm_forward", bf16, x, residual, weight, y, summed, rstd, *sizes, 1e-6)
    call(
        library, "rms_norm_backward", bf16, dy, dsummed, summed, weight, rstd, dx, dweight,
        partials, rows, *sizes,
    )  # fmt: skip
    columns = LAST * 32  # of the blocks that ran
    return [*(t.last() for t in (y, summed, rstd, dx)), dweight.view[:, -columns:].clone()]


def swiglu(library, rows: int, offset: int) -> list[torch.Tensor]:
    """Both passes."""
    dtype, f = torch.float16, H // 2
    gate_up = Sparse(rows, H, dtype=dtype, offset=offset).filled(seed=1)
    dy = Sparse(rows, f, dtype=dtype, offset=offset).filled(seed=2)
    y, dx = (Sparse(rows, n, dtype=dtype, offset=offset) for n in (f, H))
    call(library, "swiglu_forward", dtype, gate_up, y, rows, f)
    call(library, "swiglu_backward", dtype, dy, gate_up, dx, rows, f)
    return [y.last(), dx.last()]


def rope(library, rows: int, offset: int) -> list[torch.Tensor]:
    """Both directions are one kernel."""
    dtype, d, heads = torch.bfloat16, 128, (H // 128, 1)
    given = [Sparse(rows, n, d, dtype=dtype, offset=offset).filled(seed=n) for n in heads]
    out = [Sparse(rows, n, d, dtype=dtype, offset=offset) for n in heads]
    cos, sin = (Sparse(rows, d // 2, dtype=torch.float32).filled(seed=s) for s in (3, 4))
    sides = [
        ctypes.byref(
            RopeSide(x.view.data_ptr(), y.view.data_ptr(), n, x.view.stride(0), x.view.stride(1))
        )
        for x, y, n in zip(given, out, heads, strict=True)
    ]
    call(library, "rope", dtype, *sides, cos, sin, rows, d, False)
    return [y.last() for y in out]


def cross_entropy(library, rows: int, offset: int) -> list[torch.Tensor]:
    """Statistics, and the gradient over the logits."""
    dtype, fp32 = torch.bfloat16, torch.float32
    logits = Sparse(rows, H, dtype=dtype, offset=offset).filled(seed=1)
    target, grad = Sparse(rows, dtype=torch.int64), Sparse(rows, dtype=fp32).filled(seed=2)
    stats = [Sparse(rows, dtype=fp32) for _ in range(3)]
    sizes = (rows, H, H - 3, 0)
    call(library, "cross_entropy_stats", dtype, logits, target, *stats, *sizes)
    call(
        library, "cross_entropy_backward", dtype, logits, target, stats[0], grad, *sizes, 0.01
    )  # fmt: skip
    return [*(s.last() for s in stats), logits.last()]


def softmax(library, rows: int, offset: int) -> list[torch.Tensor]:
    """Both passes; every row is a sample with a mask of its own."""
    dtype = torch.bfloat16
    x, dy = (Sparse(rows, H, dtype=dtype, offset=offset).filled(seed=s) for s in (1, 2))
    mask = Sparse(rows, H, dtype=torch.uint8)
    mask.view[-LAST:, ::3] = 1
    y, dx = (Sparse(rows, H, dtype=dtype, offset=offset) for _ in range(2))
    call(library, "softmax_forward", dtype, x, mask, y, rows, 1, H, 1, 0.7, False)
    call(library, "softmax_backward", dtype, dy, y, dx, rows, H, 0.7)
    return [y.last(), dx.last()]


def adamw(library, rows: int, offset: int) -> list[torch.Tensor]:
    """One tensor; its last two chunks are updated."""
    dtype, copy_dtype, chunk = torch.float16, torch.bfloat16, 2 * H
    settings = AdamWSettings(1e-2, 0.9, 0.95, 1e-8, 0.1, 0.1, 0.05, 0.5)
    rows = rows // 2 + LAST if rows > LAST else rows
    fp32 = [Sparse(rows, chunk, dtype=torch.float32, offset=offset) for _ in range(3)]
    for seed, tensor in enumerate(fp32):
        tensor.filled(seed=seed).view[-LAST:].abs_()
    grad = Sparse(rows, chunk, dtype=dtype, offset=offset).filled(seed=5)
    copy = Sparse(rows, chunk, dtype=copy_dtype, offset=offset)
    lists = [(ctypes.c_void_p * 1)(t.address) for t in (fp32[0], grad, fp32[1], fp32[2], copy)]
    size = (ctypes.c_int64 * 1)(rows * chunk)
    call(library, "adamw", dtype, copy_dtype, 1, *lists, size, ctypes.byref(settings))
    return [t.last() for t in (*fp32, copy)]


def l2_norm(library, rows: int, offset: int) -> list[torch.Tensor]:
    """One tensor; the partial sums of its last two chunks."""
    chunk = 2 * H
    rows = rows // 2 + LAST if rows > LAST else rows
    x = Sparse(rows, chunk, dtype=torch.bfloat16, offset=offset).filled(seed=1)
    arrays = (ctypes.c_void_p * 1)(x.address), (ctypes.c_int * 1)(2), (ctypes.c_int64 * 1)(x.size)
    partials, result = Sparse(rows, dtype=torch.float32), Sparse(1, dtype=torch.float32)
    call(library, "l2_norm", 1, *arrays, partials, result)
    return [partials.last()]


OPS: dict[str, Callable[..., list[torch.Tensor]]] = {
    f.__name__: f for f in (norm, swiglu, rope, cross_entropy, softmax, adamw, l2_norm)
}


def assert_far_rows_are_right(library, op: str, offset: int) -> None:
    """Runs an op on the last rows of a large tensor and on those rows alone."""
    expected = OPS[op](library, LAST, offset)
    library.chimed_emulation_last_blocks(ctypes.c_int64(LAST))
    try:
        actual = OPS[op](library, ROWS, offset)
    finally:
        library.chimed_emulation_last_blocks(ctypes.c_int64(1 << 62))
    for far, near in zip(actual, expected, strict=True):
        assert near.float().abs().sum() > 0, "nothing was computed"
        assert torch.equal(far.view(torch.uint8), near.view(torch.uint8)), f"{op}: other rows"
