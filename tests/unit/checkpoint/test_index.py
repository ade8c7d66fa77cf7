"""Boxes: intersection and tiling, against a count of every element."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_chimed.checkpoint.index import (
    GlobalTensor,
    StoredShard,
    check_tiling,
    decode_index,
    encode_index,
    intersect,
    slices_within,
)
from megatron_chimed.errors import CheckpointError

SHAPE = (5, 4)
BOXES = st.tuples(
    st.tuples(st.integers(0, 5), st.integers(0, 4)), st.tuples(st.integers(0, 5), st.integers(0, 4))
)


def painted(regions) -> np.ndarray | None:
    """How often each element is covered; None where a region leaves the shape."""
    count = np.zeros(SHAPE, dtype=int)
    for offset, extent in regions:
        if any(o + e > s for o, e, s in zip(offset, extent, SHAPE, strict=True)):
            return None
        count[slices_within((0, 0), (offset, extent))] += 1
    return count


@settings(max_examples=300, deadline=None)
@given(st.lists(BOXES, max_size=4))
def test_tiling_is_each_element_once(regions):
    count = painted(regions)
    if count is not None and (count == 1).all():
        check_tiling("w", SHAPE, regions)
    else:
        with pytest.raises(CheckpointError, match="^w: "):
            check_tiling("w", SHAPE, regions)


@settings(max_examples=200, deadline=None)
@given(BOXES, BOXES)
def test_intersection_is_what_both_paint(first, second):
    canvas = np.zeros((20, 20), dtype=int)
    for region in (first, second):
        canvas[slices_within((0, 0), region)] += 1
    common = intersect(first, second)
    assert (common is not None) == (canvas == 2).any()
    if common is not None:
        assert (canvas[slices_within((0, 0), common)] == 2).all()
        assert (canvas == 2).sum() == np.prod(common[1])


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ([((0, 0), (2, 4)), ((3, 0), (2, 4))], "hold 16 of 20 elements"),
        ([((0, 0), (3, 4)), ((2, 0), (3, 4))], "overlap"),
        # An overlap beside a hole of equal size: the sum alone is right.
        ([((0, 0), (2, 4)), ((1, 0), (2, 4)), ((4, 0), (1, 4))], "overlap"),
        ([((0, 0), (6, 4))], "exceeds the shape"),
        ([((0,), (20,))], "exceeds the shape"),
    ],
)
def test_messages(regions, message):
    with pytest.raises(CheckpointError, match=message):
        check_tiling("w", SHAPE, regions)


def test_index_round_trip_and_refusals():
    part = StoredShard("rank_00000.safetensors", "w@0.0", (0, 0), SHAPE)
    tensors = {"w": GlobalTensor(torch.bfloat16, SHAPE, (part,))}
    value = json.loads(json.dumps(encode_index(tensors)))
    assert decode_index(value) == tensors
    assert tensors["w"].size == 40
    value["tensors"]["w"]["parts"][0]["shape"] = [4, 4]
    with pytest.raises(CheckpointError, match="w: the shards hold 16 of 20"):
        decode_index(value)
    with pytest.raises(CheckpointError, match="version 9"):
        decode_index({"version": 9})
