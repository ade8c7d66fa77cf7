"""The fused AdamW step against torch's optimizer and against plain torch."""

import pytest
import torch

from megatron_chimed.errors import KernelError
from megatron_chimed.kernels import AdamWStep, adamw_
from tests.unit.kernels.compare import DTYPES, check_deterministic, relative_error

SHAPES = [(3, 50), (7,), (0, 4), (64,)]
SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


def make(device="cpu", grad_dtype=torch.float32, copy_dtype=None):
    torch.manual_seed(0)
    params = [torch.randn(shape, device=device) for shape in SHAPES]
    lists = {
        "exp_avgs": [torch.zeros_like(p) for p in params],
        "exp_avg_sqs": [torch.zeros_like(p) for p in params],
        "copies": [torch.empty_like(p, dtype=copy_dtype) for p in params] if copy_dtype else [],
    }
    grads = [[torch.randn_like(p).to(grad_dtype) for p in params] for _ in range(3)]
    return params, grads, lists


@pytest.mark.parametrize("backend", ["fused", "reference"])
def test_three_steps_are_those_of_torch(device, backend):
    params, grads, lists = make(device)
    twins = [p.double().requires_grad_() for p in params]
    optimizer = torch.optim.AdamW(twins, foreach=False, **SETTINGS)
    for step, gradients in enumerate(grads, start=1):
        settings = AdamWStep(step=step, grad_scale=0.25, **SETTINGS)
        adamw_(params, gradients, **lists, settings=settings, backend=backend)
        for twin, gradient in zip(twins, gradients, strict=True):
            twin.grad = gradient.double() * 0.25
        optimizer.step()
    for param, twin in zip(params, twins, strict=True):
        assert relative_error(param, twin) <= 1e-6


@pytest.mark.t_way(2)
@pytest.mark.parametrize("grad_dtype", DTYPES)
@pytest.mark.parametrize("copy_dtype", DTYPES)
def test_gradients_and_copies_of_every_dtype(device, grad_dtype, copy_dtype):
    params, grads, lists = make(device, grad_dtype, copy_dtype)
    adamw_(params, grads[0], **lists, settings=AdamWStep(step=1, **SETTINGS), backend="fused")
    expected, _, others = make(device)
    wide = [g.float() for g in grads[0]]
    adamw_(expected, wide, **others, settings=AdamWStep(step=1, **SETTINGS), backend="fused")
    for param, copy, truth in zip(params, lists["copies"], expected, strict=True):
        assert torch.equal(param, truth)
        assert torch.equal(copy, truth.to(copy_dtype))


def test_same_bits_run_to_run_and_for_any_number_of_threads(device):
    def compute():
        torch.manual_seed(0)
        param, grad = torch.randn(100_000, device=device), torch.randn(100_000, device=device)
        m, v = torch.zeros_like(param), torch.zeros_like(param)
        settings = AdamWStep(step=1, **SETTINGS)
        adamw_([param], [grad], exp_avgs=[m], exp_avg_sqs=[v], settings=settings, backend="fused")
        return param, m, v

    check_deterministic(compute)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grads": []}, "grads has 0 tensors, expected 1, one for each parameter"),
        ({"grads": [torch.ones(3)]}, r"grads\[0\] has shape \[3\], expected \[4, 2\]"),
        ({"copies": [torch.ones(4, 2)] * 2}, "copies has 2 tensors, expected 1"),
        ({"params": [torch.ones(4, 2).half()]}, r"params\[0\] is torch.float16, expected torch.fl"),
        ({"exp_avgs": [torch.ones(2, 4).t()]}, r"exp_avgs\[0\] has strides \(1, 4\), expected a"),
        ({"exp_avg_sqs": [torch.ones(4, 2, device="meta")]}, r"exp_avg_sqs\[0\] is on meta"),
    ],
)
def test_bad_arguments_are_named(change, message):
    names = ("params", "grads", "exp_avgs", "exp_avg_sqs")
    arguments = {name: [torch.ones(4, 2)] for name in names} | change
    params, grads = arguments.pop("params"), arguments.pop("grads")
    with pytest.raises(KernelError, match=f"adamw: {message}"):
        adamw_(params, grads, **arguments, settings=AdamWStep(lr=1e-3, step=1))


def test_steps_count_from_one():
    with pytest.raises(KernelError, match="step is 0, expected at least 1"):
        AdamWStep(lr=1e-3, step=0)
