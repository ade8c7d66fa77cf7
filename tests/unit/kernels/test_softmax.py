"""Scaled masked softmax, and the modules that megatron-core imports."""

import importlib
import sys

import pytest
import torch

from megatron_chimed.errors import KernelError
from megatron_chimed.kernels import (
    register_megatron_modules,
    scaled_masked_softmax,
    wgrad_gemm_accum_fp16,
    wgrad_gemm_accum_fp32,
)
from megatron_chimed.kernels.softmax import scaled_masked_softmax_reference
from tests.unit.kernels.compare import (
    DTYPES,
    TOLERANCES,
    check_against_double,
    check_deterministic,
)

SHAPES = [
    (2, 3, 4, 64),  # whole vectors at every level
    (1, 2, 5, 5),  # square, shorter than a vector
    (1, 1, 3, 1030),  # more than one block of 1024 keys, more keys than queries
    (2, 3, 40, 20),  # more queries than keys: under a causal mask the first 20 see nothing
    (0, 2, 4, 8),  # no sample
]
MODULES = (
    "scaled_upper_triang_masked_softmax_cuda",
    "scaled_masked_softmax_cuda",
    "scaled_softmax_cuda",
    "fused_weight_gradient_mlp_cuda",
)


def make(shape, dtype=torch.float32, device="cpu"):
    torch.manual_seed(0)
    x = torch.randn(shape, device=device).to(dtype)
    mask = torch.rand(shape[0], 1, *shape[2:], device=device) < 0.4
    mask[:, :, 1] = True  # a query that sees no key
    return x, mask


@pytest.mark.t_way(2)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", ["none", "one for all", "one each"])
@pytest.mark.parametrize("shape", SHAPES)
def test_softmax_is_close_to_double(device, shape, masked, causal, dtype):
    x, mask = make(shape, dtype, device)
    mask = {"none": None, "one for all": mask[:1], "one each": mask}[masked]
    if mask is not None and not mask.shape[0]:
        mask = None
    if causal and mask is None and shape[2] > shape[3]:
        mask = torch.zeros(1, 1, *shape[2:], dtype=torch.bool, device=device)
    op = lambda x: scaled_masked_softmax(  # noqa: E731
        x, mask, scale=0.3, causal=causal, backend="fused"
    )
    exact = lambda x: scaled_masked_softmax_reference(x, mask, scale=0.3, causal=causal)  # noqa: E731
    check_against_double(op, exact, (x,), TOLERANCES[dtype])


def test_a_query_without_a_key_gets_zeros(device):
    x, mask = make((2, 3, 4, 64), device=device)
    y = scaled_masked_softmax(x, mask, scale=1.0, backend="fused")
    assert (y[:, :, 1] == 0).all()
    assert torch.allclose(y.sum(dim=-1)[:, :, [0, 2, 3]], torch.ones(2, 3, 3, device=device))


def test_views_give_what_their_copies_give(device):
    x, mask = make((2, 3, 6, 10), device=device)
    expected = scaled_masked_softmax(x, mask, scale=1.0, backend="fused")
    strided, turned = x.transpose(1, 2).contiguous().transpose(1, 2), mask.mT.contiguous().mT
    assert torch.equal(scaled_masked_softmax(strided, turned, scale=1.0, backend="fused"), expected)


def test_same_bits_run_to_run_and_for_any_number_of_threads(device):
    x, mask = make((2, 4, 30, 515), device=device)

    def compute():
        leaf = x.detach().requires_grad_()
        y = scaled_masked_softmax(leaf, mask, scale=0.5, causal=True, backend="fused")
        return y.detach(), *torch.autograd.grad(y, leaf, x)

    check_deterministic(compute)


def test_reference_passes_gradcheck():
    x, mask = make((1, 1, 3, 4))
    double = x.double().requires_grad_()
    torch.autograd.gradcheck(lambda x: scaled_masked_softmax(x, mask, scale=0.5), (double,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.ones(2, 3, 4)}, r"x has shape \[2, 3, 4\], expected \[b, n, sq, sk\]"),
        ({"mask": torch.ones(2, 1, 4, 5)}, "mask is torch.float32 on cpu, expected torch.bool"),
        (
            {"mask": torch.ones(3, 1, 4, 5).bool()},
            r"mask has shape \[3, 1, 4, 5\], expected \[2, 1, 4, 5\]",
        ),
        ({"scale": float("nan")}, "scale is nan, expected a finite number"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {"x": torch.ones(2, 3, 4, 5), "mask": None, "scale": 1.0} | change
    with pytest.raises(KernelError, match=f"scaled_masked_softmax: {message}"):
        scaled_masked_softmax(arguments.pop("x"), arguments.pop("mask"), **arguments)


@pytest.fixture
def modules(monkeypatch):
    """Our modules in `sys.modules` for one test."""
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    added = register_megatron_modules()
    assert tuple(added) == MODULES
    yield
    for name in added:
        del sys.modules[name]


def test_real_modules_are_left_alone(modules):
    theirs = sys.modules["scaled_softmax_cuda"]
    assert register_megatron_modules() == []
    assert sys.modules["scaled_softmax_cuda"] is theirs


def test_the_module_for_weight_gradients_holds_ours(modules):
    module = sys.modules["fused_weight_gradient_mlp_cuda"]
    assert module.wgrad_gemm_accum_fp32 is wgrad_gemm_accum_fp32
    assert module.wgrad_gemm_accum_fp16 is wgrad_gemm_accum_fp16


def test_megatron_core_computes_its_fused_softmax_with_them(modules):
    fused_softmax = importlib.import_module("megatron.core.fusions.fused_softmax")
    x, mask = make((2, 3, 8, 8))
    mask[:, :, 1, 0] = False
    cases = [
        (fused_softmax.ScaledMaskedSoftmax, x, (mask,), {"mask": mask}),
        (fused_softmax.ScaledSoftmax, x, (), {}),
        (fused_softmax.ScaledUpperTriangMaskedSoftmax, x[0], (), {"causal": True}),
    ]
    for function, scores, between, options in cases:
        leaf, plain = (scores.detach().clone().requires_grad_() for _ in range(2))
        y = function.apply(leaf, *between, 0.5)
        four = plain if plain.dim() == 4 else plain.unsqueeze(0)
        settings = {"mask": None, "causal": False} | options
        truth = scaled_masked_softmax_reference(four, scale=0.5, **settings).view_as(y)
        assert torch.allclose(y, truth, atol=1e-6), function
        upstream = torch.randn_like(y)
        gradients = [
            torch.autograd.grad(z, z_in, upstream)[0] for z, z_in in ((y, leaf), (truth, plain))
        ]
        assert torch.allclose(*gradients, atol=1e-6), function
    block = fused_softmax.FusedScaleMaskSoftmax.get_batch_per_block(8, 8, 2, 3)
    assert (2 * 3) % block == 0
