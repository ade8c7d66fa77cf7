"""The Triton kernels on CPU through Triton's interpreter, against float64.

`test_triton.py` runs this file in a process of its own: the interpreter is chosen when Triton is
first imported. By hand:

    TRITON_INTERPRET=1 .venv/bin/python -m pytest -q tests/unit/kernels/interpreted_triton.py
"""

import pytest
import torch

from megatron_chimed.kernels import VocabShard, add_rms_norm, native, rms_norm, rope, swiglu
from megatron_chimed.kernels.cross_entropy import (
    IGNORED,
    cross_entropy_stats_reference,
    vocab_parallel_cross_entropy,
)
from megatron_chimed.kernels.rms_norm import RMS_NORM, rms_norm_reference
from megatron_chimed.kernels.rope import rope_reference
from megatron_chimed.kernels.swiglu import swiglu_reference
from tests.unit.kernels import compare
from tests.unit.kernels.compare import DTYPES, angles_at, check_against_double, relative_error
from tests.unit.kernels.test_cross_entropy import exact_loss, loss_and_gradient

EPS = 1e-5
# The interpreter cuts a float off where it becomes a bfloat16; a GPU rounds.
TOLERANCES = compare.TOLERANCES | {torch.bfloat16: 1e-2}
TRITON = {"backend": "triton"}

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")


@pytest.fixture(autouse=True, scope="module")
def interpreter():
    if reason := native.why_not_triton(RMS_NORM, "cpu"):
        pytest.skip(reason)


@pytest.fixture
def ops():
    return torch.ops.chimed_triton


def draw(*shape, dtype=torch.float32):
    torch.manual_seed(0)
    return torch.randn(shape).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), [(0, 8), (1, 3), (4, 5), (3, 40), (2, 515)])
def test_rms_norm(rows, width, dtype):
    x, weight = draw(rows, width, dtype=dtype), 1 + draw(width, dtype=dtype) / 4
    op = lambda *args: rms_norm(*args, eps=EPS, **TRITON)  # noqa: E731
    exact = lambda *args: rms_norm_reference(*args, eps=EPS)  # noqa: E731
    check_against_double(op, exact, (x, weight), TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [3, 5, 40, 515])
def test_add_rms_norm(width, dtype):
    x, residual = draw(3, width, dtype=dtype), draw(2, 3, width, dtype=dtype)[1]
    weight = 1 + draw(width, dtype=dtype) / 4
    op = lambda *args: add_rms_norm(*args, eps=EPS, **TRITON)  # noqa: E731

    def exact(x, residual, weight):
        rounded = (x + residual).detach().to(dtype).double()
        summed = rounded - (x + residual).detach() + (x + residual)
        return rms_norm_reference(summed, weight, eps=EPS), summed

    check_against_double(op, exact, (x, residual, weight), TOLERANCES[dtype])


def test_more_rows_than_programs_of_the_backward_pass(monkeypatch, ops):
    from megatron_chimed.kernels.triton_ops import rms_norm as module

    x, dy, weight = draw(9, 12), draw(2, 9, 12)[1], draw(12)
    rstd = (x.square().mean(dim=1) + EPS).rsqrt()
    dx, dweight = ops.rms_norm_backward(dy, x, weight, rstd)
    monkeypatch.setattr(module, "PROGRAMS", 4)
    for value, expected in zip(
        ops.rms_norm_backward(dy, x, weight, rstd), (dx, dweight), strict=True
    ):
        assert torch.allclose(value, expected, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 6), (2, 2), (3, 2, 10), (2, 2 * 1029)])
def test_swiglu(shape, dtype):
    op = lambda x: swiglu(x, **TRITON)  # noqa: E731
    check_against_double(op, swiglu_reference, (draw(*shape, dtype=dtype),), TOLERANCES[dtype])


def test_swiglu_of_extreme_gates_is_finite():
    gate_up = torch.tensor([[-1e4, 1e4, 1.0, 1.0]])
    assert swiglu(gate_up, **TRITON).tolist() == [[0.0, 1e4]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "n", "nk", "d"), [(0, 2, 2, 4), (3, 20, 5, 6), (5, 1, 1, 2)])
def test_rope(tokens, n, nk, d, dtype):
    angles = angles_at(torch.arange(tokens) * 3, d)
    q, k = draw(tokens, n, d, dtype=dtype), draw(tokens, nk, d, dtype=dtype)
    op = lambda q, k: rope(q, k, cos=angles[0], sin=angles[1], **TRITON)  # noqa: E731
    exact = lambda q, k: (rope_reference(q, *angles), rope_reference(k, *angles))  # noqa: E731
    check_against_double(op, exact, (q, k), TOLERANCES[dtype])


def test_rope_reads_views_of_a_fused_qkv_in_place(ops):
    qkv = draw(4, 3, 5, 8)  # [T, kv heads, 3 query heads + key + value, d]
    q, k = qkv[:, 0, :3], qkv[:, :, 3]  # a head stride of d, and one of 5 d
    cos, sin = angles_at(torch.arange(4), 8)
    for inverse in (False, True):
        dense = ops.rope(q.contiguous(), k.contiguous(), cos, sin, inverse)
        for value, expected in zip(ops.rope(q, k, cos, sin, inverse), dense, strict=True):
            assert torch.equal(value, expected)


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("tokens", "columns", "vocab"), [(4, 96, 96), (3, 5000, 4500), (1, 5, 3), (0, 8, 8)]
)
def test_cross_entropy(tokens, columns, vocab, dtype, z_loss):
    logits, upstream = draw(tokens, columns, dtype=dtype), torch.rand(tokens)
    logits[:, vocab:] = torch.nan  # padding is not even read
    target = torch.randint(0, vocab, (tokens,))
    target[1:2] = IGNORED
    shard = VocabShard(size=vocab)
    loss, gradient = loss_and_gradient(
        lambda x: vocab_parallel_cross_entropy(x, target, shard=shard, z_loss=z_loss, **TRITON),
        logits,
        upstream,
    )
    truth = loss_and_gradient(
        lambda x: exact_loss(x, target, vocab, z_loss), logits.double(), upstream
    )
    assert torch.allclose(loss.double(), truth[0], rtol=1e-5, atol=1e-6)
    assert relative_error(gradient[:, :vocab], truth[1][:, :vocab]) <= TOLERANCES[dtype]
    assert (gradient[:, vocab:] == 0).all()
    assert (gradient[target == IGNORED] == 0).all()


def test_backward_overwrites_the_logits():
    leaf, target = draw(4, 9).requires_grad_(), torch.zeros(4, dtype=torch.int64)
    loss = vocab_parallel_cross_entropy(leaf, target, shard=VocabShard(size=9), **TRITON)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    assert gradient.data_ptr() == leaf.data_ptr()


@pytest.mark.parametrize("start", [0, 100, 200, 300])
def test_statistics_of_a_shard(ops, start):
    """The last two shards hold some padding, and nothing else."""
    logits, target = draw(5, 100), torch.tensor([0, 99, 150, 289, IGNORED])
    found = ops.cross_entropy_stats(logits, target, start, 290)
    expected = cross_entropy_stats_reference(logits, target, start, 290)
    for value, truth in zip(found, expected, strict=True):
        assert torch.allclose(value, truth, rtol=1e-6)


def test_minus_infinity_and_nan(ops):
    logits, target = draw(3, 4200), torch.full((3,), 4150)
    logits[0, :4140] = -torch.inf  # a whole block without a finite value
    logits[1, 7] = torch.nan
    _, total, _ = ops.cross_entropy_stats(logits, target, 0, 4200)
    assert total.isnan().tolist() == [False, True, False]
    truth = (logits[0].double() - logits[0].max()).exp().sum()
    assert relative_error(total[0], truth) <= 1e-6


def test_same_bits_again(ops):
    dy, x, weight = draw(2, 10, 33).unbind() + (draw(33),)
    first = ops.rms_norm_backward(dy, x, weight, torch.ones(10))
    again = ops.rms_norm_backward(dy, x, weight, torch.ones(10))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_what_triton_has_no_kernel_for_runs_as_with_auto():
    from megatron_chimed.kernels import l2_norm

    assert l2_norm([draw(4)], **TRITON) == l2_norm([draw(4)])
