"""Attention over a cache against the formula in float64, and that tokens do not disturb others."""

import dataclasses
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_chimed.errors import KernelError
from megatron_chimed.kernels import CacheIndices, cached_attention
from tests.unit.kernels.compare import DTYPES, TOLERANCES, check_deterministic, relative_error

# (query heads, key heads, width): all own, groups, one for all; whole vectors and odd ends.
HEADS = [(4, 4, 64), (6, 2, 40), (3, 1, 6), (8, 8, 128)]
LENGTH = 50


def case(heads, *, dtype=torch.float32, positions=(0, 1, 2, 3, 30, 49), spare=2):
    """A fused qkv, cut into views as the model does, a filled cache, and where the tokens go."""
    n, k, d = heads
    generator = torch.Generator().manual_seed(2)
    tokens, slots = len(positions), len(positions) + spare
    qkv = 2 * torch.randn(tokens, (n + 2 * k) * d, generator=generator)
    cache = 2 * torch.randn(2, slots, k, LENGTH, d, generator=generator)
    parts = qkv.to(dtype).split([n * d, k * d, k * d], dim=-1)
    query, key, value = (part.unflatten(-1, (-1, d)) for part in parts)
    order = torch.randperm(slots, generator=generator)[:tokens].sort().values
    indices = CacheIndices(
        slots=order, positions=torch.tensor(positions), longest=max(positions) + 1
    )
    return query, key, value, tuple(cache.to(dtype).unbind()), indices


def formula(query, key, value, cache, indices):
    """One head of one token at a time, in float64."""
    keys, values = (stored.double() for stored in cache)
    output = torch.zeros(query.shape, dtype=torch.float64)
    group = query.shape[1] // key.shape[1]
    for t, (slot, position) in enumerate(zip(indices.slots, indices.positions, strict=True)):
        keys[slot, :, position], values[slot, :, position] = key[t].double(), value[t].double()
        for head in range(query.shape[1]):
            seen = keys[slot, head // group, : position + 1]
            scores = seen @ query[t, head].double() / math.sqrt(query.shape[2])
            output[t, head] = scores.softmax(0) @ values[slot, head // group, : position + 1]
    return output, keys, values


@pytest.mark.t_way(2)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("backend", ["fused", "reference"])
def test_it_is_the_formula_and_stores(device, backend, heads, dtype):
    if device != "cpu":
        pytest.skip("there is no CUDA kernel")
    query, key, value, cache, indices = case(heads, dtype=dtype)
    exact, keys, values = formula(query, key, value, cache, indices)
    found = cached_attention(query, key, value, cache, indices=indices, backend=backend)
    assert found.dtype == dtype and found.shape == query.shape
    assert relative_error(found, exact) < TOLERANCES[dtype]
    assert torch.equal(cache[0].double(), keys) and torch.equal(cache[1].double(), values)


def test_a_token_has_the_same_bits_alone(device):
    if device != "cpu":
        pytest.skip("there is no CUDA kernel")
    query, key, value, cache, indices = case((6, 2, 40))
    together = cached_attention(query, key, value, cache, indices=indices)
    for t in range(len(query)):
        alone = CacheIndices(
            slots=indices.slots[t : t + 1],
            positions=indices.positions[t : t + 1],
            longest=int(indices.positions[t]) + 1,
        )
        part = [x[t : t + 1] for x in (query, key, value)]
        assert torch.equal(cached_attention(*part, cache, indices=alone), together[t : t + 1])
    check_deterministic(lambda: [cached_attention(query, key, value, cache, indices=indices)])


def test_all_slots_at_once_need_no_copy():
    query, key, value, cache, indices = case((4, 2, 8), spare=0)
    exact, *_ = formula(query, key, value, cache, indices)
    every = dataclasses.replace(indices, is_every_slot=True)
    with LargestCopy() as copies:
        found = cached_attention(query, key, value, cache, indices=every, backend="reference")
    assert relative_error(found, exact) < 1e-5
    assert not copies.largest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": torch.ones(6, 3, 8)}, r"query has shape \[6, 3, 8\] and keys \[8, 2, 50, 8\]"),
        ({"key": torch.ones(6, 4, 8)}, r"key has shape \[6, 4, 8\], expected \[6, 2, 8\]"),
        ({"value": torch.ones(5, 2, 8)}, r"value has shape \[5, 2, 8\], expected \[6, 2, 8\]"),
        ({"key": torch.ones(6, 2, 8).half()}, "key has dtype torch.float16"),
        ({"cache": (torch.ones(8, 2, 50, 6),) * 2}, r"keys has shape \[8, 2, 50, 6\]"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    names = ("query", "key", "value", "cache")
    *given, indices = case((4, 2, 8))
    arguments = dict(zip(names, given, strict=True)) | change
    with pytest.raises(KernelError, match=f"cached_attention: {message}"):
        cached_attention(*arguments.values(), indices=indices)


def test_direct_callers_cannot_leave_the_cache():
    query, key, value, cache, indices = case((4, 2, 8))
    op = torch.ops.chimed.cached_attention
    for slots, positions in (
        (indices.slots + 8, indices.positions),
        (indices.slots, indices.positions + LENGTH),
        (indices.slots - 9, indices.positions),
        (indices.slots.int(), indices.positions),
        (indices.slots[:3], indices.positions),
    ):
        with pytest.raises(RuntimeError, match="chimed: "):
            op(query, key, value, *cache, slots, positions)


class LargestCopy(TorchDispatchMode):
    """Elements of the largest tensor that is made by picking slots."""

    largest = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        result = op(*args, **(kwargs or {}))
        if op is torch.ops.aten.index.Tensor:
            self.largest = max(self.largest, result.numel())
        return result


def test_the_reference_copies_only_positions_that_some_token_sees():
    query, key, value, cache, indices = case((4, 2, 8), positions=(0, 1, 6))
    with LargestCopy() as copies:
        cached_attention(query, key, value, cache, indices=indices, backend="reference")
    assert copies.largest == 3 * 2 * 7 * 8  # tokens, key heads, longest, width
