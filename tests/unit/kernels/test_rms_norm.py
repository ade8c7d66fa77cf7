"""RMSNorm with and without the residual addition, forward and backward."""

import pytest
import torch

from megatron_chimed.errors import KernelError
from megatron_chimed.kernels import add_rms_norm, rms_norm
from megatron_chimed.kernels.rms_norm import rms_norm_reference
from tests.unit.kernels.compare import (
    DTYPES,
    TOLERANCES,
    check_against_double,
    check_deterministic,
)

EPS = 1e-6
SHAPES = [
    (3, 4, 1024),  # whole vectors at every level, several leading dimensions
    (2, 33),  # a tail of one element after whole vectors
    (1, 7),  # one row, shorter than a vector
    (0, 16),  # no row: nothing to read, dweight must be zero
    (70, 65),  # dweight from three blocks of rows, the last one ragged
]


def reference(x, weight):
    return rms_norm_reference(x, weight, eps=EPS)


def add_reference(x, residual, weight):
    # The kernel norms the sum as it is stored: rounding it is not an error of the norm.
    return reference(x + residual, weight), x + residual


def make(shape, dtype, device):
    torch.manual_seed(0)
    x = torch.randn(shape, device=device).to(dtype)
    weight = (1 + 0.3 * torch.randn(shape[-1], device=device)).to(dtype)
    return x, weight


@pytest.mark.t_way(2)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_rms_norm_is_close_to_double(device, shape, dtype):
    inputs = make(shape, dtype, device)
    op = lambda x, weight: rms_norm(x, weight, eps=EPS, backend="fused")  # noqa: E731
    check_against_double(op, reference, inputs, TOLERANCES[dtype])


@pytest.mark.t_way(2)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_add_rms_norm_is_close_to_double(device, shape, dtype):
    x, weight = make(shape, dtype, device)
    residual = (x * 0.5).roll(1, -1).contiguous()
    op = lambda *args: add_rms_norm(*args, eps=EPS, backend="fused")  # noqa: E731
    check_against_double(op, add_reference, (x, residual, weight), TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_views_give_what_their_copies_give(device, dtype):
    x, weight = make((6, 40), dtype, device)
    strided = torch.stack((x, x), dim=-1)[..., 0]  # not contiguous
    shifted = torch.cat((x.new_zeros(1), x.flatten()))[1:].view_as(x)  # not aligned to a vector
    expected = rms_norm(x, weight, backend="fused")
    for view in (strided, shifted):
        assert torch.equal(rms_norm(view, weight, backend="fused"), expected)
    # A gradient that autograd hands over as an expanded view.
    leaf = x.clone().requires_grad_()
    rms_norm(leaf, weight, backend="fused").sum().backward()
    assert leaf.grad.isfinite().all()


def test_same_bits_run_to_run_and_for_any_number_of_threads(device):
    x, weight = make((200, 515), torch.float32, device)

    def compute():
        leaves = [x.detach().requires_grad_(), weight.detach().requires_grad_()]
        y = rms_norm(*leaves, backend="fused")
        return y.detach(), *torch.autograd.grad(y, leaves, x)

    check_deterministic(compute)


def test_a_nan_stays_a_nan(device):
    x, weight = make((2, 64), torch.bfloat16, device)
    x[0, 3] = torch.nan
    y = rms_norm(x, weight, backend="fused")
    assert y[0].isnan().all()
    assert y[1].isfinite().all()


def test_reference_passes_gradcheck():
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda *args: rms_norm(*args, backend="auto"), (x, weight))
    torch.autograd.gradcheck(
        lambda *args: add_rms_norm(*args, backend="reference"), (x, x.detach() * 2, weight)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.ones(5)}, r"rms_norm: weight has shape \[5\], expected \[4\]"),
        ({"weight": torch.ones(4).half()}, "weight has dtype torch.float16, but x has torch.float"),
        ({"weight": torch.ones(4, device="meta")}, "weight has device meta, but x has cpu"),
        ({"x": torch.ones(2, 4, dtype=torch.int32)}, "x is torch.int32, but the op computes on"),
        (
            {"backend": "fast"},
            "backend is 'fast', expected one of auto, fused, cuda, trit",
        ),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {"x": torch.ones(2, 4), "weight": torch.ones(4), "backend": "auto"} | change
    with pytest.raises(KernelError, match=message):
        rms_norm(arguments.pop("x"), arguments.pop("weight"), **arguments)


def test_add_rms_norm_names_a_residual_of_another_shape():
    with pytest.raises(KernelError, match=r"residual has shape \[3, 4\], expected \[2, 4\]"):
        add_rms_norm(torch.ones(2, 4), torch.ones(3, 4), torch.ones(4))
