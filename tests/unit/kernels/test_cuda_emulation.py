"""The CUDA kernels' own source, run on a CPU by a small emulation, against float64 torch.

`cuda_emulation/` replaces the CUDA headers, g++ compiles `csrc/cuda/*.cu` unchanged, and the C ABI
is called with CPU tensors. It proves indices, tails, masks, dispatch and barriers where there is no
GPU; it says nothing about speed. Every case runs with the threads in both orders and must give the
same bits; tensors end at the edge of readable memory, and what lies before them must stay.
"""

import ctypes
import math

import pytest
import torch

from tests.unit.kernels.cuda_emulation import large
from tests.unit.kernels.cuda_emulation.harness import (
    CODES,
    DTYPES,
    TOLERANCES,
    AdamWSettings,
    Guarded,
    RopeSide,
    assert_close,
    build_library,
    call,
    in_both_orders,
    random,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> ctypes.CDLL:
    return build_library(tmp_path_factory.mktemp("cuda_emulation"))


# Rows, width, offset. The widths take each vectors-per-thread variant of the forward (16 bits: up
# to 1024, 2048, more; fp32: half) and of the backward (4096, 8192, more); 100 and the offset take
# the looping kernels; 9 rows make blocks of the backward loop; one row and none are the edges.
NORM_CASES = [
    (9, 64, 0),
    (1, 2048, 0),
    (9, 5120, 0),
    (3, 8200, 0),
    (35, 100, 0),
    (3, 256, 1),
    (0, 64, 0),
]


@pytest.mark.t_way(1)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("add", [False, True], ids=["plain", "add"])
@pytest.mark.parametrize(("rows", "h", "offset"), NORM_CASES)
def test_rms_norm(library, dtype, add, rows, h, offset):
    x, residual, dy, dsummed = (random(rows, h, dtype=dtype, seed=s) for s in range(4))
    weight = 1 + 0.1 * random(h, dtype=dtype, seed=5)
    eps = 1e-6
    given = [Guarded(t, offset=offset) for t in (x, residual, weight, dy, dsummed)]
    partial_rows = library.chimed_cuda_rms_norm_partials
    partial_rows.restype = ctypes.c_int64
    num_partials = partial_rows(CODES[dtype], ctypes.c_int64(rows), ctypes.c_int64(h))
    assert 0 <= num_partials <= rows

    def run() -> list[torch.Tensor]:
        y, summed, dx = (Guarded((rows, h), dtype, offset=offset) for _ in range(3))
        rstd, dweight = Guarded((rows,), torch.float32), Guarded((h,), dtype, offset=offset)
        partials = Guarded((num_partials, h), torch.float32)
        sides = (given[1], summed, given[4]) if add else (None, None, None)
        call(
            library, "rms_norm_forward", dtype, given[0], sides[0], given[2], y, sides[1], rstd,
            rows, h, eps,
        )  # fmt: skip
        source = summed if add else given[0]
        call(
            library, "rms_norm_backward", dtype, given[3], sides[2], source, given[2], rstd, dx,
            dweight, partials, num_partials, rows, h,
        )  # fmt: skip
        partials.checked()
        return [o.checked() for o in (y, rstd, dx, dweight, *([summed] if add else []))]

    y, rstd, dx, dweight, *summed = in_both_orders(library, run)
    x64 = x.double()
    if add:
        assert torch.equal(summed[0], x + residual)
        x64 = summed[0].double()
    x64.requires_grad_()
    weight64 = weight.double().requires_grad_()
    rstd64 = torch.rsqrt(x64.pow(2).mean(-1, keepdim=True) + eps)
    y64 = x64 * rstd64 * weight64
    y64.backward(dy.double())
    dx64 = x64.grad + (dsummed.double() if add else 0)
    assert_close(rstd, rstd64.squeeze(-1).detach(), torch.float32)
    assert_close(y, y64.detach(), dtype)
    assert_close(dx, dx64, dtype)
    assert_close(dweight, weight64.grad, dtype)


@pytest.mark.t_way(1)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("rows", "f", "offset"), [(3, 64, 0), (2, 4104, 0), (5, 43, 0), (2, 64, 1), (0, 8, 0)]
)
def test_swiglu(library, dtype, rows, f, offset):
    gate_up, dy = random(rows, 2 * f, dtype=dtype), random(rows, f, dtype=dtype, seed=1)
    if rows:
        gate_up[0, :2] = torch.tensor([-90.0, 90.0])
    given = [Guarded(t, offset=offset) for t in (gate_up, dy)]

    def run() -> list[torch.Tensor]:
        y, dx = Guarded((rows, f), dtype, offset=offset), Guarded(gate_up, offset=offset)
        call(library, "swiglu_forward", dtype, given[0], y, rows, f)
        call(library, "swiglu_backward", dtype, given[1], given[0], dx, rows, f)
        return [y.checked(), dx.checked()]

    y, dx = in_both_orders(library, run)
    x64 = gate_up.double().requires_grad_()
    y64 = torch.nn.functional.silu(x64[:, :f]) * x64[:, f:]
    y64.backward(dy.double())
    assert_close(y, y64.detach(), dtype)
    assert_close(dx, x64.grad, dtype)


# Tokens, heads of q and k, head size, whether q and k interleave in one projection.
ROPE_CASES = [
    (3, 4, 4, 128, True),
    (2, 8, 2, 64, False),
    (3, 3, 1, 20, True),
    (1, 70, 70, 64, False),
    (0, 2, 2, 16, False),
]


@pytest.mark.t_way(1)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "n", "nk", "d", "fused"), ROPE_CASES)
def test_rope(library, dtype, rows, n, nk, d, fused):
    # Fused: the first n heads of size d are q and the next nk are k, a gap of d after each head.
    projection = random(rows, n + nk, 2 * d if fused else d, dtype=dtype)
    holder = Guarded(projection)
    q, k = holder.view[:, :n, :d], holder.view[:, n:, :d]
    angles = 3 * random(rows, d // 2, dtype=torch.float32, seed=2)
    cos, sin = Guarded(angles.cos()), Guarded(angles.sin())

    def side(x: torch.Tensor, out: Guarded) -> RopeSide:
        return RopeSide(x.data_ptr(), out.view.data_ptr(), x.shape[1], x.stride(0), x.stride(1))

    def run(inverse: bool) -> list[torch.Tensor]:
        q_out, k_out = Guarded((rows, n, d), dtype), Guarded((rows, nk, d), dtype)
        sides = ctypes.byref(side(q, q_out)), ctypes.byref(side(k, k_out))
        call(library, "rope", dtype, *sides, cos, sin, rows, d, inverse)
        return [q_out.checked(), k_out.checked()]

    for inverse in (False, True):
        q_out, k_out = in_both_orders(library, lambda inverse=inverse: run(inverse))
        c, s = angles.double().cos()[:, None], angles.double().sin()[:, None]
        s = -s if inverse else s
        for x, out in ((q, q_out), (k, k_out)):
            a, b = x.double().chunk(2, dim=-1)
            assert_close(out, torch.cat([a * c - b * s, b * c + a * s], dim=-1), dtype)


# Rows, columns, of which count, start of the vocabulary, offset. 10248: two batches of loads; 1003:
# no vectors; 5 of 64: a tail shorter than a vector; 0: a rank that holds only padding.
ENTROPY_CASES = [
    (4, 64, 64, 0, 0),
    (3, 4104, 4101, 4104, 0),
    (2, 10248, 10248, 0, 0),
    (3, 1003, 1000, 0, 0),
    (2, 64, 5, 128, 0),
    (2, 64, 0, 64, 0),
    (2, 64, 60, 0, 1),
    (0, 64, 64, 0, 0),
]


@pytest.mark.t_way(1)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "v", "valid", "start", "offset"), ENTROPY_CASES)
def test_cross_entropy(library, dtype, rows, v, valid, start, offset):
    logits = 5 * random(rows, v, dtype=dtype)
    logits[:, valid:] = 1e4  # padding must count for nothing
    if rows:
        logits[0, : valid // 2] = -math.inf
    target = torch.tensor([-100, start + max(valid - 1, 0), start + v, start], dtype=torch.int64)
    target = target[torch.arange(rows) % 4]
    grad = torch.tensor([0.0, 0.5, 2.0, 1.0])[torch.arange(rows) % 4]
    given, ids = Guarded(logits, offset=offset), Guarded(target)
    z_loss = 0.01

    def stats() -> list[torch.Tensor]:
        outputs = [Guarded((rows,), torch.float32) for _ in range(3)]
        call(library, "cross_entropy_stats", dtype, given, ids, *outputs, rows, v, valid, start)
        return [o.checked() for o in outputs]

    top, total, hit = in_both_orders(library, stats)
    used = logits[:, :valid].double()
    local = (target >= start) & (target < start + valid)
    column = torch.where(local, target - start, 0)[:, None]
    if valid and rows:
        assert torch.equal(top.double(), used.amax(-1))
        assert_close(total, (used - used.amax(-1, keepdim=True)).exp().sum(-1), torch.float32)
        assert torch.equal(hit.double(), torch.where(local, used.gather(1, column)[:, 0], 0.0))
    else:
        assert (top == -math.inf).all() and (total == 0).all() and (hit == 0).all()

    lse = used.logsumexp(-1) if valid else torch.zeros(rows, dtype=torch.float64)
    lse32, grad32 = Guarded(lse.float()), Guarded(grad)

    def backward() -> list[torch.Tensor]:
        written = Guarded(logits, offset=offset)
        call(
            library, "cross_entropy_backward", dtype, written, ids, lse32, grad32, rows, v, valid,
            start, z_loss,
        )  # fmt: skip
        return [written.checked()]

    (dlogits,) = in_both_orders(library, backward)
    expected = torch.zeros(rows, v, dtype=torch.float64)
    factor = (1 + 2 * z_loss * lse)[:, None]
    expected[:, :valid] = factor * (used - lse[:, None]).exp()
    if rows:
        expected[local] -= torch.nn.functional.one_hot(column[local, 0], v).double()
    expected *= grad.double()[:, None]
    assert_close(dlogits, expected, dtype)
    assert (dlogits[:, valid:] == 0).all() and (dlogits[grad == 0] == 0).all()


# b, n, sq, sk, masks (0: none, 1: one for all, 2: one per sample), causal. 24 takes one vector per
# thread, 1032 in 16 bits two, 16384 four; 37 and 16392 take the looping kernel.
SOFTMAX_CASES = [
    (2, 2, 3, 24, 2, False),
    (1, 1, 2, 1032, 1, False),
    (1, 1, 1, 16384, 0, False),
    (1, 1, 2, 16392, 1, True),
    (2, 1, 5, 37, 2, True),
    (1, 2, 40, 40, 0, True),
    (0, 2, 3, 24, 0, False),
]


@pytest.mark.t_way(1)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("b", "n", "sq", "sk", "masks", "causal"), SOFTMAX_CASES)
def test_softmax(library, dtype, b, n, sq, sk, masks, causal):
    scale = 0.7
    x, dy = 3 * random(b, n, sq, sk, dtype=dtype), random(b, n, sq, sk, dtype=dtype, seed=1)
    hidden = torch.zeros(b, 1, sq, sk, dtype=torch.bool)
    if masks:
        hidden = torch.rand(b if masks == 2 else 1, 1, sq, sk) < 0.4
        hidden[-1, 0, sq - 1] = True  # a row without any visible score
    given, mask, dy_given = Guarded(x), Guarded(hidden.to(torch.uint8)), Guarded(dy)
    rows, period = b * n * sq, n * sq if masks == 2 else 0

    def run() -> list[torch.Tensor]:
        y, dx = Guarded(x.shape, dtype), Guarded(x.shape, dtype)
        call(
            library, "softmax_forward", dtype, given, mask if masks else None, y, rows, sq, sk,
            period, scale, causal,
        )  # fmt: skip
        call(library, "softmax_backward", dtype, dy_given, y, dx, rows, sk, scale)
        return [y.checked(), dx.checked()]

    y, dx = in_both_orders(library, run)
    x64 = x.double().requires_grad_()
    if causal:
        hidden = hidden | torch.ones(sq, sk, dtype=torch.bool).triu(sk - sq + 1)
    hidden = hidden.expand(x.shape)
    scores = (scale * x64).masked_fill(hidden, -math.inf)
    y64 = scores.softmax(-1).masked_fill(hidden, 0.0)  # also where a whole row is hidden
    y64.nan_to_num(0.0).backward(dy.double())
    expected_dx = x64.grad.nan_to_num(0.0)
    assert_close(y, y64.detach().nan_to_num(0.0), dtype)
    # The gradient is that of the rounded probabilities: a cancellation in 16 bits.
    error = (dx.double() - expected_dx).norm()
    assert not dx.isnan().any()
    assert error <= 2 * TOLERANCES[dtype] * expected_dx.norm() + 1e-30
    assert (y[hidden] == 0).all() and (dx[hidden] == 0).all()


# 3 elements: no vector; 16384 + 5: a second chunk with a tail; 70 tensors: a second table.
SIZES = [3, 0, 16384 + 5, 64, *[7] * 70]


def addresses(tensors: list[Guarded]) -> ctypes.Array:
    return (ctypes.c_void_p * len(tensors))(*(t.view.data_ptr() for t in tensors))


def sizes_of(tensors: list[Guarded]) -> ctypes.Array:
    return (ctypes.c_int64 * len(tensors))(*(t.size for t in tensors))


# Elements after a 32-byte boundary at which (param, gradient, moments, copy) start. In shards of a
# distributed optimizer gradient and copy are views at any offset, with fp32 weights the parameter
# too. Then all alike, moments that differ, and every piece of each list.
STARTS = [
    (0, 0, 0, 0),
    *((0, n, 0, n) for n in (1, 2, 3, 4, 6)),
    *((n, n, 0, 0) for n in (1, 2, 3)),
    *((n, n, n, n) for n in (1, 2, 3, 5)),
    (0, 2, 0, 1),
    (0, 1, 0, 2),
    (3, 2, 1, 0),
]


@pytest.mark.t_way(1)
@pytest.mark.parametrize("grad_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("copy_dtype", [None, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("starts", STARTS, ids=str)
def test_adamw(library, grad_dtype, copy_dtype, starts):
    lr, beta1, beta2, eps, decay, step, grad_scale = 1e-2, 0.9, 0.95, 1e-8, 0.1, 3, 0.25
    corrections = (1 - beta1**step, 1 - beta2**step)
    settings = AdamWSettings(lr, beta1, beta2, eps, decay, *corrections, grad_scale)
    param_start, grad_start, moment_start, copy_start = starts
    offsets = (param_start, grad_start, moment_start, moment_start)
    start = {
        "param": [random(n, dtype=torch.float32, seed=1) for n in SIZES],
        "grad": [random(n, dtype=grad_dtype, seed=2) for n in SIZES],
        "exp_avg": [random(n, dtype=torch.float32, seed=3) for n in SIZES],
        "exp_avg_sq": [random(n, dtype=torch.float32, seed=4).square() for n in SIZES],
    }

    def run() -> list[torch.Tensor]:
        lists = [
            [Guarded(t, offset=offset) for t in tensors]
            for tensors, offset in zip(start.values(), offsets, strict=True)
        ]
        copies = [Guarded((n,), copy_dtype or torch.float16, offset=copy_start) for n in SIZES]
        call(
            library, "adamw", grad_dtype, copy_dtype or torch.float32, len(SIZES),
            *(addresses(tensors) for tensors in lists),
            addresses(copies) if copy_dtype else None, sizes_of(copies), ctypes.byref(settings),
        )  # fmt: skip
        written = [lists[0], lists[2], lists[3], *([copies] if copy_dtype else [])]
        return [torch.cat([t.checked() for t in tensors]) for tensors in written]

    param, exp_avg, exp_avg_sq, *copy = in_both_orders(library, run)
    p, g, m, v = (torch.cat(tensors).double() for tensors in start.values())
    g = g * grad_scale
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    p = p - lr * decay * p - lr * m / corrections[0] / ((v / corrections[1]).sqrt() + eps)
    for actual, expected in ((param, p), (exp_avg, m), (exp_avg_sq, v)):
        assert_close(actual, expected, torch.float32)
    if copy_dtype:
        assert torch.equal(copy[0], param.to(copy_dtype))


@pytest.mark.parametrize("sizes", [SIZES * 2, [], [0, 0]], ids=["many", "none", "empty"])
@pytest.mark.parametrize("offset", [0, 1])
def test_l2_norm(library, sizes, offset):
    kinds = [DTYPES[i % 3] for i in range(len(sizes))]
    tensors = [random(n, dtype=kind, seed=1) for n, kind in zip(sizes, kinds, strict=True)]
    given = [Guarded(t, offset=offset) for t in tensors]
    codes = (ctypes.c_int * len(sizes))(*(CODES[kind] for kind in kinds))
    count_partials = library.chimed_cuda_l2_norm_partials
    count_partials.restype = ctypes.c_int64
    num_partials = count_partials(ctypes.c_int64(len(sizes)), sizes_of(given))

    def run() -> list[torch.Tensor]:
        partials, result = Guarded((num_partials,), torch.float32), Guarded((1,), torch.float32)
        arrays = addresses(given), codes, sizes_of(given)
        call(library, "l2_norm", len(sizes), *arrays, partials, result)
        partials.checked()
        return [result.checked()]

    (result,) = in_both_orders(library, run)
    expected = math.sqrt(sum(t.double().square().sum().item() for t in tensors))
    assert abs(result.item() - expected) <= 1e-6 * expected


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("op", large.OPS)
def test_rows_beyond_2_to_32_elements(library, op, offset):
    large.assert_far_rows_are_right(library, op, offset)
