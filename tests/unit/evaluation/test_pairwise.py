"""Verdicts in both orders and by aspects, and win rates without the effect of length."""

import numpy as np
import pytest

from megatron_chimed.errors import DataError
from megatron_chimed.evaluation.scores.pairwise import (
    combine_orders,
    count_verdicts,
    decide_by_priority,
    fit_logistic,
    length_controlled_win_rate,
    order_effect,
    swapped,
)
from megatron_chimed.evaluation.scores.statistics import bootstrap_statistic
from megatron_chimed.observe.intervals import wilson_interval

VERDICTS = ("win", "tie", "loss")


@pytest.mark.parametrize("first", VERDICTS)
@pytest.mark.parametrize("second", VERDICTS)
def test_a_win_needs_both_orders(first, second):
    assert combine_orders(first, second) == (first if first == second else "tie")
    assert swapped(swapped(first)) == first
    assert combine_orders(swapped(first), swapped(second)) == swapped(combine_orders(first, second))


def test_safety_decides_before_professionalism_and_fluency():
    verdicts = {"fluency": "win", "professionalism": "win", "safety": "loss"}
    assert decide_by_priority(verdicts) == "loss"
    assert decide_by_priority({**verdicts, "safety": "tie"}) == "win"
    assert decide_by_priority(dict.fromkeys(verdicts, "tie")) == "tie"
    with pytest.raises(DataError, match="no verdict on safety"):
        decide_by_priority({"fluency": "win", "professionalism": "win"})


def test_counts_and_their_intervals():
    counts = count_verdicts(["win"] * 5 + ["tie"] * 2 + ["loss"])
    assert (counts.total, counts.win_rate) == (8, 6 / 8)
    assert counts.intervals()["tie"] == wilson_interval(2, 8)


def test_a_judge_who_always_favours_the_first_has_an_order_effect_of_one():
    assert order_effect(["win", "win"], ["loss", "loss"]) == 1
    assert order_effect(["win", "tie"], ["win", "tie"]) == 0


def drawn(seed=0, size=400, bonus=0.0, length_effect=1.5):
    rng = np.random.default_rng(seed)
    differences = rng.normal(40, 60, size)
    scaled = np.tanh(differences / differences.std())
    chances = 1 / (1 + np.exp(-(bonus + length_effect * scaled)))
    wins = rng.random(size) < chances
    return ["win" if one else "loss" for one in wins], 200 + differences, np.full(size, 200.0)


def test_length_that_alone_decides_leaves_a_rate_of_one_half():
    verdicts, lengths, other = drawn(size=4000)
    assert count_verdicts(verdicts).win_rate > 0.6
    assert length_controlled_win_rate(verdicts, lengths, other) == pytest.approx(0.5, abs=0.04)


def test_a_length_controlled_rate_has_an_interval():
    columns = drawn(size=200)
    low, high = bootstrap_statistic(length_controlled_win_rate, *columns, draws=100)
    assert low < length_controlled_win_rate(*columns) < high < low + 0.3


def test_from_the_other_model_it_is_one_minus_that():
    verdicts, lengths, other = drawn(bonus=0.5)
    verdicts = ["tie", "tie", *verdicts[2:]]
    found = length_controlled_win_rate(verdicts, lengths, other)
    reverse = length_controlled_win_rate([swapped(one) for one in verdicts], other, lengths)
    assert found + reverse == pytest.approx(1, abs=1e-12)


def test_equal_lengths_leave_the_win_rate():
    verdicts = ["win"] * 300 + ["tie"] * 100 + ["loss"] * 100
    found = length_controlled_win_rate(verdicts, np.ones(500), np.ones(500))
    assert found == pytest.approx(count_verdicts(verdicts).win_rate, abs=1e-4)


def test_a_model_that_always_wins_has_a_finite_rate():
    lengths = np.arange(10.0)
    assert 0.9 < length_controlled_win_rate(["win"] * 10, lengths, lengths[::-1]) < 1


def test_the_logistic_regression_is_that_of_scikit_learn():
    linear = pytest.importorskip("sklearn.linear_model", reason="the oracle, of the extra dev")
    rng = np.random.default_rng(2)
    features = rng.normal(size=(200, 3))
    outcomes = (rng.random(200) < 1 / (1 + np.exp(-features @ [1.0, -2.0, 0.3]))).astype(int)
    oracle = linear.LogisticRegression(C=1 / 0.5, fit_intercept=False, tol=1e-10, max_iter=1000)
    oracle.fit(features, outcomes)
    assert fit_logistic(features, outcomes, ridge=0.5) == pytest.approx(oracle.coef_[0], abs=1e-5)


def test_lengths_must_fit_the_verdicts():
    with pytest.raises(DataError, match="2 verdicts and 1 pairs"):
        length_controlled_win_rate(["win", "loss"], [1], [2])
    with pytest.raises(DataError, match="0 verdicts"):
        length_controlled_win_rate([], [], [])
