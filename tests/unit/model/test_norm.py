"""RMSNorm against transformers', bit for bit in each type, and against float64."""

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from megatron_chimed import engine
from megatron_chimed.config.kernels import KernelConfig
from megatron_chimed.kernels import AUTO
from megatron_chimed.model.norm import RMSNorm
from tests.unit.engine.world import layout_of

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Relative norm of the error against float64, as kernels are held to.
TOLERANCES = {"fp32": 1e-5, "bf16": 4e-3, "fp16": 1e-3}
WIDTH, EPS = 96, 1e-5


def make_norms(precision, kernels=AUTO, **parallel):
    settings = engine.engine_settings(layout_of(**parallel), hidden_size=WIDTH, precision=precision)
    ours = RMSNorm("norm", eps=EPS, settings=settings, kernels=kernels)
    theirs = LlamaRMSNorm(WIDTH, eps=EPS).to(DTYPES[precision])
    generator = torch.Generator().manual_seed(0)
    weight = 1 + 0.3 * torch.randn(WIDTH, generator=generator)
    with torch.no_grad():
        ours.weight.copy_(weight)
        theirs.weight.copy_(weight)
    # Large, tiny and zero rows: fp16 squares of the first overflow unless they are fp32.
    x = torch.randn(5, 3, WIDTH, generator=generator)
    x = x * torch.tensor([3e2, 1.0, 1e-3, 0.0, 30.0])[:, None, None]
    return ours, theirs, x.to(DTYPES[precision])


@pytest.mark.parametrize("precision", DTYPES)
def test_values_and_gradients_are_those_of_transformers(precision):
    """The plain path; the fused one is held to float64, here and among the kernels."""
    ours, theirs, x = make_norms(precision, KernelConfig(backend="reference").ops())
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [norm(given) for norm, given in zip((ours, theirs), inputs, strict=True)]
    assert outputs[0].dtype == x.dtype
    assert torch.equal(*outputs)
    assert outputs[0].isfinite().all()
    upstream = torch.linspace(-1, 1, x.numel()).reshape(x.shape).to(x.dtype)
    for output in outputs:
        output.backward(upstream)
    assert torch.equal(inputs[0].grad, inputs[1].grad)
    assert torch.equal(ours.weight.grad, theirs.weight.grad)


@pytest.mark.parametrize("precision", DTYPES)
def test_values_are_those_of_the_formula(precision):
    ours, _, x = make_norms(precision)
    wide = x.double()
    expected = wide / (wide.square().mean(-1, keepdim=True) + EPS).sqrt() * ours.weight.double()
    error = (ours(x).double() - expected).norm() / expected.norm()
    assert error < TOLERANCES[precision]


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_the_weight_says_whether_its_gradient_is_partial(sequence_parallel):
    """megatron-core sums gradients of marked weights over the tensor-parallel ranks."""
    ours, *_ = make_norms(
        "fp32", world_size=2, tensor_parallel_size=2, sequence_parallel=sequence_parallel
    )
    assert ours.weight.sequence_parallel is sequence_parallel


def test_the_piece_is_the_whole_weight():
    ours, *_ = make_norms("fp32")
    (spec,) = ours.shard_specs("model.layers.3.")
    assert spec == engine.ShardSpec(
        key="model.layers.3.norm.weight",
        global_shape=(WIDTH,),
        offset=(0,),
        first_row=0,
        rows=WIDTH,
    )
