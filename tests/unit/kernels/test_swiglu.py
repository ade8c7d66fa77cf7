"""SwiGLU, forward and backward."""

import pytest
import torch

from megatron_chimed.errors import KernelError
from megatron_chimed.kernels import swiglu
from megatron_chimed.kernels.swiglu import swiglu_reference
from tests.unit.kernels.compare import (
    DTYPES,
    TOLERANCES,
    check_against_double,
    check_deterministic,
)

SHAPES = [
    (2, 3, 256),  # whole vectors at every level, several leading dimensions
    (3, 2 * 37),  # gate and up both end in a partial vector, up starts unaligned
    (1, 2),  # one pair
    (0, 8),  # no row
]


def fused(gate_up):
    return swiglu(gate_up, backend="fused")


@pytest.mark.t_way(2)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_swiglu_is_close_to_double(device, shape, dtype):
    torch.manual_seed(0)
    gate_up = (3 * torch.randn(shape, device=device)).to(dtype)
    check_against_double(fused, swiglu_reference, (gate_up,), TOLERANCES[dtype])


def test_views_give_what_their_copies_give(device):
    gate_up = torch.randn(5, 44, device=device)
    strided = gate_up.t().contiguous().t()
    shifted = torch.cat((gate_up.new_zeros(1), gate_up.flatten()))[1:].view_as(gate_up)
    for view in (strided, shifted):
        assert torch.equal(fused(view), fused(gate_up))


@pytest.mark.parametrize("gate", [-1e30, -200.0, -88.5, -87.2, 0.0, 88.5, 200.0, 1e30])
def test_no_overflow_where_the_sigmoid_saturates(device, gate):
    gate_up = torch.tensor([[gate, 1.0]], device=device, requires_grad=True)
    y = fused(gate_up)
    (gradient,) = torch.autograd.grad(y, gate_up, torch.ones_like(y))
    expected = torch.tensor([[gate, 1.0]], dtype=torch.float64, requires_grad=True)
    truth = swiglu_reference(expected)
    (true_gradient,) = torch.autograd.grad(truth, expected, torch.ones_like(truth))
    assert torch.allclose(y.double().cpu(), truth, rtol=1e-5, atol=1e-30 + abs(gate) * 1e-37)
    assert torch.allclose(gradient.double().cpu(), true_gradient, rtol=1e-5, atol=1e-5)


def test_a_nan_stays_a_nan(device):
    gate_up = torch.ones(1, 64, device=device)
    gate_up[0, 3] = torch.nan
    assert fused(gate_up)[0].isnan().tolist() == [i == 3 for i in range(32)]


def test_same_bits_run_to_run_and_for_any_number_of_threads(device):
    gate_up = torch.randn(100, 1030, device=device)

    def compute():
        leaf = gate_up.detach().requires_grad_()
        y = fused(leaf)
        return y.detach(), *torch.autograd.grad(y, leaf, torch.ones_like(y))

    check_deterministic(compute)


def test_reference_passes_gradcheck():
    gate_up = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(swiglu, (gate_up,))


@pytest.mark.parametrize(
    ("gate_up", "message"),
    [
        (torch.ones(2, 5), r"gate_up has shape \[2, 5\], expected \[.., 2f\]"),
        (torch.tensor(1.0), r"gate_up has shape \[\]"),
        (torch.ones(2, 4, dtype=torch.int64), "gate_up is torch.int64"),
    ],
)
def test_bad_arguments_are_named(gate_up, message):
    with pytest.raises(KernelError, match=message):
        swiglu(gate_up)
