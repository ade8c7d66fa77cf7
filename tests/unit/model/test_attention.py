"""Both attention back ends against the formula, written out in float64."""

import math

import pytest
import torch

from megatron_chimed.model.attention import BACKENDS

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# Relative norm of the error against float64.
TOLERANCES = {"fp32": 1e-5, "fp16": 1e-3, "bf16": 4e-3}
# (heads, key-value heads): all own, groups of 4, one for all.
HEADS = ((4, 4), (8, 2), (3, 1))


def tensors(heads, *, queries=9, keys=9, dtype=torch.float32, seed=0):
    """q [b, n, s, d], k and v [b, k, keys, d]."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((2, heads[0], queries, 8), (2, heads[1], keys, 8), (2, heads[1], keys, 8))
    return [2 * torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def formula(query, key, value, visible):
    """One query at a time: softmax over the keys it may see."""
    output = torch.zeros(query.shape, dtype=torch.float64)
    group = query.shape[1] // key.shape[1]
    for b in range(query.shape[0]):
        for n in range(query.shape[1]):
            k, v = key[b, n // group].double(), value[b, n // group].double()
            for s in range(query.shape[2]):
                seen = visible(b, s)
                scores = k[seen] @ query[b, n, s].double() / math.sqrt(query.shape[-1])
                weights = (scores - scores.max()).exp()
                output[b, n, s] = (weights / weights.sum()) @ v[seen]
    return output


def masks():
    """name -> (mask [b, 1, s, keys] or None, visible keys of each query, number of keys)."""
    packed = torch.zeros(2, 1, 9, 9, dtype=torch.bool)
    for row, cut in ((0, 4), (1, 7)):
        packed[row, 0, :cut, :cut] = True
        packed[row, 0, cut:, cut:] = True
    packed &= torch.ones(9, 9, dtype=torch.bool).tril()
    cached = torch.ones(9, 14, dtype=torch.bool).tril(5).expand(2, 1, 9, 14)
    return {
        "causal": (None, lambda b, s: torch.arange(s + 1), 9),
        "packed": (packed, lambda b, s: packed[b, 0, s].nonzero().flatten(), 9),
        "cached": (cached, lambda b, s: torch.arange(s + 6), 14),
    }


def relative_error(found, expected):
    return (found.double() - expected).norm() / expected.norm()


@pytest.mark.t_way(2)
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("name", masks())
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_the_formula(backend, heads, name, precision):
    mask, visible, keys = masks()[name]
    query, key, value = tensors(heads, keys=keys, dtype=DTYPES[precision])
    found = BACKENDS[backend](query, key, value, mask=mask, dropout=0.0)
    assert found.dtype == DTYPES[precision]
    assert relative_error(found, formula(query, key, value, visible)) < TOLERANCES[precision]


@pytest.mark.parametrize("name", ["causal", "packed"])
@pytest.mark.parametrize("heads", HEADS)
def test_back_ends_have_the_same_gradients(heads, name):
    mask = masks()[name][0]
    gradients = []
    for backend in BACKENDS.values():
        given = [x.requires_grad_() for x in tensors(heads)]
        output = backend(*given, mask=mask, dropout=0.0)
        output.backward(torch.linspace(-1, 1, output.numel()).reshape(output.shape))
        gradients.append([x.grad for x in given])
    for ours, theirs in zip(*gradients, strict=True):
        assert relative_error(ours, theirs.double()) < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_future_is_not_seen(backend):
    query, key, value = tensors((4, 2))
    before = BACKENDS[backend](query, key, value, mask=None, dropout=0.0)
    key[:, :, 5:], value[:, :, 5:] = 9.0, -9.0
    after = BACKENDS[backend](query, key, value, mask=None, dropout=0.0)
    assert torch.equal(before[:, :, :5], after[:, :, :5])
    assert not torch.equal(before[:, :, 5:], after[:, :, 5:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_half_precision_scores_stay_finite(backend):
    """Ziya-13B's fp16 softmax overflowed; here it is fp32."""
    query, key, value = tensors((2, 2), dtype=torch.float16)
    found = BACKENDS[backend](query * 60, key * 60, value, mask=None, dropout=0.0)
    expected = formula(query * 60, key * 60, value, lambda b, s: torch.arange(s + 1))
    assert found.isfinite().all()
    assert relative_error(found, expected) < 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_keeps_the_mean(backend):
    torch.manual_seed(0)
    query, key, value = tensors((4, 4), queries=16, keys=16)
    plain = BACKENDS[backend](query, key, value, mask=None, dropout=0.0)
    drawn = [BACKENDS[backend](query, key, value, mask=None, dropout=0.5) for _ in range(1500)]
    assert not torch.equal(drawn[0], drawn[1])
    mean = torch.stack(drawn).mean(0)
    assert relative_error(mean, plain.double()) < 0.05
