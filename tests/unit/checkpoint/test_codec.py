"""The JSON codec: round trips of the closed type set, refusal of everything else."""

import collections
import enum
import json
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_chimed.checkpoint.codec import decode, encode
from megatron_chimed.errors import CheckpointError


def through_json(value):
    kept = []

    def store(tensor):
        kept.append(tensor)
        return str(len(kept) - 1)

    text = json.dumps(encode(value, store), allow_nan=False)
    return decode(json.loads(text), lambda reference: kept[int(reference)])


def same(first, second) -> bool:
    """Equal with equal types all the way down; NaN equals NaN."""
    if type(first) is not type(second):
        return False
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, dict):
        return same(list(first.items()), list(second.items()))
    if isinstance(first, float) and math.isnan(first):
        return math.isnan(second)
    return first == second


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
KEYS = st.text() | st.integers() | st.tuples(st.text(), st.integers()) | st.sampled_from("$x")
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(KEYS, inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(VALUES)
def test_round_trip(value):
    assert same(through_json(value), value)


@pytest.mark.parametrize(
    "value",
    [
        {"betas": (0.9, 0.95), "lr": 1e-5 / 3, "none": None},
        {(torch.bfloat16, torch.float32): [180864]},
        {"$tuple": [1]},
        {"": 0, "$": 1},
        [math.inf, -math.inf, math.nan, -0.0, 5e-324],
        [np.float32(0.1), np.int64(-3), np.bool_(True), np.float64("inf"), np.uint32(2**32 - 1)],
        torch.bfloat16,
        random.Random(3).getstate(),
        2**4000,
    ],
)
def test_what_training_state_is_made_of(value):
    assert same(through_json(value), value)


def test_negative_zero_keeps_its_sign():
    assert math.copysign(1.0, through_json(-0.0)) == -1.0


def test_tensors_and_arrays_come_back_with_type_and_shape():
    state = np.random.RandomState(5).get_state(legacy=False)
    value = {
        "tensor": torch.arange(6, dtype=torch.uint8).reshape(2, 3),
        "half": torch.randn(3).bfloat16(),
        "scalar": torch.tensor(65536.0),
        "array": np.array(3.5),
        "order": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "numpy": state,
    }
    back = through_json(value)
    for name in ("tensor", "half", "scalar"):
        assert back[name].dtype is value[name].dtype
        assert torch.equal(back[name], value[name])
    for name in ("array", "order"):
        np.testing.assert_array_equal(back[name], value[name])
        assert back[name].dtype == value[name].dtype and back[name].shape == value[name].shape
    assert back["numpy"]["state"]["key"].dtype == np.uint32
    np.testing.assert_array_equal(back["numpy"]["state"]["key"], state["state"]["key"])


class Colour(enum.IntEnum):
    RED = 1


Point = collections.namedtuple("Point", "x")


@pytest.mark.parametrize(
    "value",
    [
        object(),
        Colour.RED,
        Point(1),
        {1, 2},
        b"raw",
        1j,
        collections.OrderedDict(a=1),
        np.array(["text"]),
        np.array([None]),
        np.str_("text"),
        torch.zeros(2, dtype=torch.complex64),
        torch.device("cpu"),
        slice(3),
    ],
)
def test_other_types_are_refused_with_their_place(value):
    with pytest.raises(CheckpointError, match=r"state\.outer\[1\] is a .*cannot hold"):
        encode({"outer": [0, value]}, lambda tensor: "0")


def test_an_unknown_tag_is_refused():
    with pytest.raises(CheckpointError, match=r"unknown tag '\$call'"):
        decode({"$call": ["os.system", "true"]}, lambda reference: torch.zeros(1))
