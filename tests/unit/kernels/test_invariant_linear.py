"""The product for few rows against float64, and that rows do not depend on each other."""

import pytest
import torch

from megatron_chimed.errors import KernelError
from megatron_chimed.kernels import invariant_linear
from tests.unit.kernels.compare import DTYPES, TOLERANCES, check_deterministic, relative_error

# (rows, k, n): one row, fewer and more than the lanes of a vector, several tiles, odd ends.
SHAPES = [(1, 256, 96), (5, 1, 1), (16, 704, 130), (17, 300, 33), (33, 64, 200), (70, 513, 65)]


def case(shape, dtype=torch.float32):
    rows, k, n = shape
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(rows, k, generator=generator)
    return x.to(dtype), torch.randn(n, k, generator=generator).to(dtype)


@pytest.mark.t_way(2)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_product(device, shape, dtype):
    if device != "cpu":
        pytest.skip("there is no CUDA kernel")
    x, weight = case(shape, dtype)
    found = invariant_linear(x, weight, backend="fused")
    assert found.dtype == dtype
    assert relative_error(found, x.double() @ weight.double().t()) < TOLERANCES[dtype]


def test_leading_dimensions_and_views_are_kept(device):
    if device != "cpu":
        pytest.skip("there is no CUDA kernel")
    x, weight = case((12, 40, 24))
    wide = torch.cat([x, x], dim=1).unflatten(0, (1, 3, 4))[..., 40:]
    found = invariant_linear(wide, weight)
    assert found.shape == (1, 3, 4, 24)
    assert torch.equal(found.flatten(0, 2), invariant_linear(x, weight))


def test_a_row_has_the_same_bits_in_any_company(device):
    if device != "cpu":
        pytest.skip("there is no CUDA kernel")
    x, weight = case((70, 300, 150))
    whole = invariant_linear(x, weight)
    for first in (0, 1, 31, 50):
        for count in (1, 2, 5, 15, 16, 17, 20):
            part = invariant_linear(x[first : first + count], weight)
            assert torch.equal(part, whole[first : first + count]), (first, count)
    check_deterministic(lambda: [invariant_linear(x, weight)])


def test_not_finite_numbers_stay_in_their_row(device):
    if device != "cpu":
        pytest.skip("there is no CUDA kernel")
    x, weight = case((6, 64, 40))
    x[2, 7] = float("nan")
    found = invariant_linear(x, weight)
    assert found[2].isnan().all()
    assert found[[0, 1, 3, 4, 5]].isfinite().all()


def test_wrong_arguments_are_named():
    x, weight = case((3, 8, 4))
    with pytest.raises(KernelError, match=r"x has shape \[3, 8\] and weight \[4, 7\], expected"):
        invariant_linear(x, weight[:, :7])
    with pytest.raises(KernelError, match="weight has dtype torch.float16"):
        invariant_linear(x, weight.half())
    with pytest.raises(KernelError, match="invariant_linear: x is torch.int64"):
        invariant_linear(x.long(), weight.long())
    with pytest.raises(RuntimeError, match="chimed: "):
        torch.ops.chimed.invariant_linear(x, weight[:, :7].contiguous())
