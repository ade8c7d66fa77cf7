"""A linear layer's products on CPU."""

import sys

import pytest
import torch

from megatron_chimed.kernels import linear
from tests.unit.kernels.compare import DTYPES, TOLERANCES, relative_error


@pytest.fixture(params=["oneDNN from the first product on", "by size"], autouse=True)
def choice(request, monkeypatch):
    if request.param != "by size":
        # Through sys.modules: as an attribute of the package, `linear` is the function.
        module = sys.modules["megatron_chimed.kernels.linear"]
        monkeypatch.setattr(module, "ONEDNN_PRODUCTS", 0)


@pytest.mark.t_way(1)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [(3, 5), (1,), (0, 2), (), (4, 6000)])
def test_it_is_close_to_double(rows, dtype):
    torch.manual_seed(0)
    x, weight = torch.randn(*rows, 37).to(dtype), torch.randn(11, 37).to(dtype)
    y = linear(x, weight)
    assert y.dtype == dtype and y.is_contiguous() and not y._is_view()
    assert relative_error(y, x.double() @ weight.double().t()) <= TOLERANCES[dtype]


def test_views_give_what_their_copies_give():
    x, weight = torch.randn(6, 4, 24).transpose(0, 1), torch.randn(24, 10)
    copies = x.contiguous(), weight.t().contiguous()
    assert relative_error(linear(x, weight.t()), linear(*copies)) <= 1e-6
