"""Stopwatch and moving averages, with a clock we hold."""

import pytest

from megatron_chimed.observe.timers import StepRate, Stopwatch


def test_laps_follow_the_clock():
    times = iter([10.0, 10.5, 13.0])
    stopwatch = Stopwatch(clock=lambda: next(times))
    assert [stopwatch.lap(), stopwatch.lap()] == [0.5, 2.5]


def test_steady_pace_gives_exact_rate_and_eta_from_the_first_step():
    rate = StepRate()
    assert (rate.tokens_per_second, rate.seconds_for(10)) == (0.0, 0.0)
    for _ in range(3):
        rate.update(seconds=0.5, tokens=1000)
        assert rate.tokens_per_second == pytest.approx(2000)
        assert rate.seconds_for(10) == pytest.approx(5.0)


def test_average_is_the_weighted_mean_of_all_steps():
    rate = StepRate(decay=0.5)
    for seconds in (4.0, 1.0, 2.0):
        rate.update(seconds=seconds, tokens=7)
    mean = (0.25 * 4 + 0.5 * 1 + 1.0 * 2) / 1.75
    assert rate.seconds_for(1) == pytest.approx(mean)
    assert rate.tokens_per_second == pytest.approx(7 / mean)
