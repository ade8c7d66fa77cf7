"""Shards of weights and of flat ranges, against brute force on tensors whose values are places."""

import dataclasses
import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_chimed.engine import ShardSpec, flat_shards, row_shards


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One rank's parameter: its memory holds the place of each value in its global tensor.

    Padding holds -1. `expected` lists, for each element of the flat memory, (key, place) or None.
    """

    specs: list
    tensor: torch.Tensor
    globals: dict
    expected: list


def build(shards, tail_rows):
    """From (key, global shape, offset, shard shape), one after the other in dimension 0."""
    specs, parts, globals_, expected, row = [], [], {}, [], 0
    for key, shape, offset, shard in shards:
        whole = torch.arange(math.prod(shape)).reshape(shape)
        globals_[key] = shape
        part = whole[tuple(slice(o, o + n) for o, n in zip(offset, shard, strict=True))]
        parts.append(part)
        expected += [(key, place) for place in part.flatten().tolist()]
        specs.append(
            ShardSpec(key=key, global_shape=shape, offset=offset, first_row=row, rows=shard[0])
        )
        row += shard[0]
    if tail_rows:
        width = parts[0].shape[1:] if parts else (3,)
        padding = torch.full((tail_rows, *width), -1)
        parts.append(padding)
        expected += [None] * padding.numel()
    return Parameter(specs, torch.cat(parts), globals_, expected)


@st.composite
def parameters(draw):
    """Norms, fused rows, columns of a matrix, and vocabulary rows with padding or only padding."""
    kind = draw(st.sampled_from(["norm", "fused", "columns", "vocabulary"]))
    ranks = draw(st.integers(1, 4))
    rank = draw(st.integers(0, ranks - 1))
    size, width = st.integers(1, 5), draw(st.integers(1, 6))
    if kind == "norm":
        length = draw(st.integers(1, 12))
        return build([("norm", (length,), (0,), (length,))], 0)
    if kind == "fused":
        heights = draw(st.lists(size, min_size=1, max_size=3))
        shards = [
            (f"spec{i}", (height * ranks, width), (height * rank, 0), (height, width))
            for i, height in enumerate(heights)
        ]
        return build(shards, 0)
    if kind == "columns":
        height = draw(size)
        shard = ("o", (height, width * ranks), (0, width * rank), (height, width))
        return build([shard], 0)
    rows, vocab_size = draw(st.integers(1, 6)), draw(st.integers(1, 24))
    first = rank * rows
    used = max(0, min(rows, vocab_size - first))
    shard = ("embed", (vocab_size, width), (min(first, vocab_size), 0), (used, width))
    return build([shard], rows - used)


def place_of(found, globals_):
    """(key, places in the global tensor) of each value of a shard, from its offset alone."""
    whole = torch.arange(math.prod(globals_[found.key])).reshape(globals_[found.key])
    where = zip(found.offset, found.tensor.shape, strict=True)
    return whole[tuple(slice(o, o + n) for o, n in where)]


@settings(max_examples=200, deadline=None)
@given(parameters())
def test_row_shards_name_the_place_of_every_value(parameter):
    seen = []
    for found in row_shards(parameter.specs, parameter.tensor, prefix="exp_avg."):
        assert found.key.startswith("exp_avg.")
        found = dataclasses.replace(found, key=found.key.removeprefix("exp_avg."))
        assert found.global_shape == parameter.globals[found.key]
        assert torch.equal(found.tensor, place_of(found, parameter.globals))
        assert found.tensor.numel() > 0
        seen += [(found.key, place) for place in found.tensor.flatten().tolist()]
    assert seen == [place for place in parameter.expected if place is not None]


@settings(max_examples=500, deadline=None)
@given(parameters(), st.lists(st.integers(0, 200), max_size=4))
def test_flat_shards_of_any_cut_tile_the_parameter(parameter, cuts):
    flat = parameter.tensor.flatten()
    cuts = sorted({0, flat.numel(), *(cut for cut in cuts if cut <= flat.numel())})
    seen = []
    for start, stop in zip(cuts, cuts[1:], strict=False):
        values = flat[start:stop].clone()  # memory of its own, as a rank has
        shards = list(
            flat_shards(parameter.specs, parameter.tensor.shape, values, start=start, prefix="m.")
        )
        assert len(shards) <= 3 * len(parameter.specs)
        for found in shards:
            found = dataclasses.replace(found, key=found.key.removeprefix("m."))
            assert found.global_shape == parameter.globals[found.key]
            assert torch.equal(found.tensor, place_of(found, parameter.globals))
            assert found.tensor.dim() == parameter.tensor.dim()
            seen += [(found.key, place) for place in found.tensor.flatten().tolist()]
    assert seen == [place for place in parameter.expected if place is not None]


@settings(max_examples=100, deadline=None)
@given(parameters(), st.data())
def test_shards_are_views_of_live_memory(parameter, data):
    """A checkpoint is read into them: what is written to a shard is in its memory."""
    rows = parameter.tensor.clone()
    for found in row_shards(parameter.specs, rows):
        found.tensor.fill_(-7)
    flat = parameter.tensor.flatten().clone()
    start = data.draw(st.integers(0, flat.numel()))
    for found in flat_shards(parameter.specs, parameter.tensor.shape, flat[start:], start=start):
        found.tensor.fill_(-7)
    for index, (row_value, flat_value) in enumerate(
        zip(rows.flatten().tolist(), flat.tolist(), strict=True)
    ):
        original = parameter.tensor.flatten()[index].item()
        is_padding = parameter.expected[index] is None
        assert row_value == (original if is_padding else -7)
        assert flat_value == (original if is_padding or index < start else -7)


def test_shards_of_parameters_need_no_gradient():
    weight = torch.nn.Parameter(torch.ones(4, 3))
    spec = ShardSpec(key="w", global_shape=(4, 3), offset=(0, 0), first_row=0, rows=4)
    (shard,) = row_shards([spec], weight)
    shard.tensor.zero_()  # would raise on a leaf that requires a gradient
    assert not weight.detach().any()
