"""The norm over many tensors."""

import pytest
import torch

from megatron_chimed.errors import KernelError
from megatron_chimed.kernels import l2_norm
from tests.unit.kernels.compare import DTYPES, check_deterministic, relative_error

# Several blocks of 65536 with a tail, less than a vector, nothing, a scalar.
SHAPES = [(3, 50000), (7,), (0, 4), ()]


def make(dtype, device):
    torch.manual_seed(0)
    return [torch.randn(shape, device=device).to(dtype) for shape in SHAPES]


@pytest.mark.t_way(2)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", ["fused", "reference"])
def test_norm_is_close_to_double(device, backend, dtype):
    tensors = make(dtype, device)
    exact = torch.cat([x.double().flatten() for x in tensors]).norm()
    norm = l2_norm(tensors, backend=backend)
    assert norm.dtype == torch.float32
    assert norm.device.type == device
    assert relative_error(norm, exact) <= 1e-6


def test_mixed_dtypes_and_views(device):
    tensors = [x for dtype in DTYPES for x in make(dtype, device)]
    views = [x.t() if x.dim() == 2 else x for x in tensors]
    exact = torch.cat([x.double().flatten() for x in tensors]).norm()
    assert relative_error(l2_norm(views, backend="fused"), exact) <= 1e-6


def test_only_empty_tensors_and_not_finite_ones(device):
    assert l2_norm([torch.ones(0, device=device)], backend="fused").item() == 0.0
    for bad in (torch.nan, torch.inf):
        tensors = [torch.ones(40, device=device), torch.tensor([1.0, bad], device=device)]
        assert not l2_norm(tensors, backend="fused").isfinite()


def test_same_bits_run_to_run_and_for_any_number_of_threads(device):
    tensors = make(torch.float32, device)
    check_deterministic(lambda: [l2_norm(tensors, backend="fused")])


def test_bad_arguments_are_named():
    with pytest.raises(KernelError, match="tensors is empty, expected at least one"):
        l2_norm([])
    with pytest.raises(KernelError, match=r"tensors\[1\] is torch.int64"):
        l2_norm([torch.ones(2), torch.ones(2).long()])
    with pytest.raises(KernelError, match=r"tensors\[1\] is on meta, but tensors\[0\] on cpu"):
        l2_norm([torch.ones(2), torch.ones(2, device="meta")])
    with pytest.raises(KernelError, match="not torch.float64"):
        l2_norm([torch.ones(2), torch.ones(2).double()], backend="fused")
