"""Which of torch's back ends attention may take on CUDA; only a GPU shows that they compute it."""

import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel

from megatron_chimed.errors import KernelError
from megatron_chimed.kernels import causal_attention, chosen_backend
from megatron_chimed.kernels.sdpa import allowed_backends, sdpa

sdpa_module = sys.modules["megatron_chimed.kernels.sdpa"]


@pytest.mark.parametrize(
    ("dtype", "capability", "masked", "names"),
    [
        (torch.bfloat16, (9, 0), False, "CUDNN_ATTENTION FLASH_ATTENTION EFFICIENT_ATTENTION"),
        (torch.float16, (8, 0), False, "FLASH_ATTENTION CUDNN_ATTENTION EFFICIENT_ATTENTION"),
        (torch.bfloat16, (9, 0), True, "EFFICIENT_ATTENTION MATH"),
        (torch.float32, (9, 0), False, "EFFICIENT_ATTENTION MATH"),
    ],
)
def test_the_order_of_the_back_ends(dtype, capability, masked, names):
    found = allowed_backends(dtype, capability, masked=masked)
    assert [backend.name for backend in found] == names.split()


@pytest.fixture
def pinned(monkeypatch):
    """The lists of back ends that attention was pinned to."""
    lists = []
    pin = sdpa_module.sdpa_kernel

    def record(backends, set_priority):
        lists.append((backends, set_priority))
        return pin(backends, set_priority=set_priority)

    monkeypatch.setattr(sdpa_module, "sdpa_kernel", record)
    return lists


def test_attention_is_pinned_on_cuda_and_not_on_cpu(pinned):
    x = torch.randn(4, 2, 8, 64)
    causal_attention(x, x, x)
    assert not pinned
    with FakeTensorMode():
        shapes = (2, 8, 64, 64), (2, 2, 64, 64)
        query, key = (torch.empty(s, dtype=torch.bfloat16, device="cuda") for s in shapes)
        assert sdpa(query, key, key, is_causal=True).shape == query.shape
    ((backends, has_priority),) = pinned
    assert has_priority and SDPBackend.MATH not in backends
    assert backends[0] is SDPBackend.CUDNN_ATTENTION


def test_what_was_switched_off_in_torch_stays_off(pinned):
    with FakeTensorMode(), sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
        query = torch.empty(1, 8, 64, 64, dtype=torch.bfloat16, device="cuda")
        sdpa(query, query, query, is_causal=True)
    assert pinned[-1][0] == [SDPBackend.FLASH_ATTENTION]


def test_what_no_back_end_takes_is_our_error(monkeypatch):
    def refuse(*arguments, **settings):
        raise RuntimeError("No available kernel. Aborting execution.")

    monkeypatch.setattr(sdpa_module.F, "scaled_dot_product_attention", refuse)
    query = torch.randn(1, 2, 4, 8)
    with pytest.raises(KernelError, match=r"queries \[1, 2, 4, 8\].*attention_backend reference"):
        sdpa(query, query, query, is_causal=True)


@pytest.mark.parametrize("taken", ["cudnn", "flash", "efficient", ""])
def test_the_report_names_the_first_back_end_that_takes_the_heads(monkeypatch, taken):
    monkeypatch.setattr(torch.backends.cuda, "SDPAParams", lambda *call: call)
    for name in ("cudnn", "flash", "efficient"):
        monkeypatch.setattr(
            torch.backends.cuda, f"can_use_{name}_attention", lambda call, n=name: n == taken
        )
    with FakeTensorMode():
        query = torch.empty(1, 8, 128, 64, dtype=torch.bfloat16, device="cuda")
        assert chosen_backend(query, query) == taken.upper()
