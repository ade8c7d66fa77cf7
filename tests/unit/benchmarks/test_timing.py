"""Benchmarks with the smallest arguments: one round is a measurement, none is refused."""

import argparse

import pytest

from benchmarks import timing


def test_one_round_has_no_spread():
    spread = timing.Spread.of([3.0])
    assert (spread.low, spread.median, spread.high, spread.minimum) == (3.0,) * 4
    assert spread.samples == (3.0,), "the sample is counted once"
    assert timing.paired_ratio(spread, timing.Spread.of([6.0])).median == 2.0


def test_one_round_is_measured():
    times = timing.interleave({"a": abs, "b": abs}, device="cpu", rounds=1, warmups=1)
    assert all(len(spread.samples) == 1 for spread in times.values())


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many"])
def test_no_round_at_all_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match=f"{text} is not a whole number of 1 or"):
        timing.at_least_one(text)
    assert timing.at_least_one("7") == 7
