"""Intervals, tests, averages and agreement against scipy, scikit-learn and values by hand."""

import math

import numpy as np
import pytest

from megatron_chimed.errors import DataError
from megatron_chimed.evaluation.scores import statistics


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def test_the_standard_error_is_that_of_a_sample():
    assert statistics.sample_stderr([1, 0, 1, 1]) == pytest.approx(math.sqrt(0.25 / 4))
    assert statistics.sample_stderr([1]) is None


def test_a_bootstrap_interval_is_that_of_the_normal_distribution_in_a_large_sample():
    values = draw(4000)
    half = 1.96 * statistics.sample_stderr(values)
    expected = (values.mean() - half, values.mean() + half)
    assert statistics.bootstrap_interval(values, draws=4000) == pytest.approx(expected, abs=2e-3)


def test_a_bootstrap_interval_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats", reason="the oracle, of the extra dev")
    values = draw(60) ** 2
    found = statistics.bootstrap_interval(values, draws=20_000)
    oracle = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", random_state=1
    ).confidence_interval
    assert found == pytest.approx((oracle.low, oracle.high), abs=0.02)


def test_the_interval_of_any_statistic_of_a_mean_is_that_of_the_mean():
    values = draw(80)
    found = statistics.bootstrap_statistic(np.mean, values, draws=2000)
    assert found == pytest.approx(statistics.bootstrap_interval(values), abs=0.03)


def test_resamples_of_a_kappa_keep_the_labels_of_an_item_together():
    first = [0, 1] * 40
    assert statistics.bootstrap_statistic(statistics.cohen_kappa, first, first) == (1, 1)
    assert statistics.bootstrap_statistic(statistics.cohen_kappa, [1, 1], [1, 1]) is None


def test_equal_seeds_give_equal_intervals_in_any_number_of_chunks(monkeypatch):
    values = draw(50)
    found = statistics.bootstrap_interval(values, seed=3)
    assert found == statistics.bootstrap_interval(values, seed=3)
    assert found != statistics.bootstrap_interval(values, seed=4)
    monkeypatch.setattr(statistics, "_CHUNK", 50)
    assert found == statistics.bootstrap_interval(values, seed=3)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_scores_that_are_missing_are_refused(values):
    with pytest.raises(DataError, match=r"no scores|score \d is"):
        statistics.bootstrap_interval(values)


def test_micro_and_macro_averages():
    groups = {"anatomy": [1, 1, 1, 0], "virology": [0, 0]}
    assert statistics.micro_average(groups) == 0.5
    assert statistics.macro_average(groups) == 0.375
    low, high = statistics.macro_interval({"a": draw(500), "b": draw(500, seed=1)})
    assert high - low == pytest.approx(2 * 1.96 / math.sqrt(1000), rel=0.1)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (5, 1), (1, 5), (3, 3), (40, 22), (0, 1)])
def test_mcnemar_is_the_binomial_test(first, second):
    stats = pytest.importorskip("scipy.stats", reason="the oracle, of the extra dev")
    oracle = stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert statistics.mcnemar_exact(first, second) == pytest.approx(oracle, rel=1e-12)


def test_mcnemar_by_hand():
    # 1 of 6 differs the other way: 2 (1 + 6) / 64.
    assert statistics.mcnemar_exact(5, 1) == 2 * 7 / 64
    assert 0 < statistics.mcnemar_exact(2600, 2400) < 0.01


def test_an_exact_permutation_test_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats", reason="the oracle, of the extra dev")
    differences = draw(9) + 0.4
    oracle = stats.permutation_test(
        (differences, np.zeros(9)),
        lambda a, b: np.mean(a - b),
        permutation_type="samples",
        n_resamples=math.inf,
    )
    assert statistics.permutation_test(differences) == (pytest.approx(oracle.pvalue), True)


def test_a_sampled_permutation_test_is_near_the_exact_one():
    differences = draw(12) + 0.3
    exact, _ = statistics.permutation_test(differences, draws=1 << 12)
    sampled, is_exact = statistics.permutation_test(differences, draws=(1 << 12) - 1)
    assert not is_exact
    assert sampled == pytest.approx(exact, abs=0.03)


def test_equal_models_do_not_differ():
    scores = draw(40)
    same = statistics.compare_paired(scores, scores)
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)


def test_paired_comparisons_name_their_test():
    first, second = np.arange(20) % 2, np.zeros(20)
    found = statistics.compare_paired(first, second)
    assert found.test == "mcnemar_exact"
    assert found.p_value == statistics.mcnemar_exact(10, 0)
    assert found.low <= found.difference == 0.5 <= found.high
    assert statistics.compare_paired(first * 0.3, second).test == "permutation_exact"
    assert statistics.compare_paired(draw(50), draw(50, seed=1)).test == "permutation"
    with pytest.raises(DataError, match="has 2 scores, the other 1"):
        statistics.compare_paired([1, 0], [1])


def test_few_of_many_tests_of_equal_models_are_significant():
    rng = np.random.default_rng(0)
    p_values = [
        statistics.permutation_test(rng.normal(size=30), seed=seed, draws=200)[0]
        for seed in range(200)
    ]
    assert np.mean(np.array(p_values) <= 0.05) == pytest.approx(0.05, abs=0.04)


def test_baselines_by_hand():
    assert statistics.random_accuracy([4, 5]) == pytest.approx((1 / 4 + 1 / 5) / 2)
    assert statistics.random_accuracy([2, 3], multiple=True) == pytest.approx((1 / 3 + 1 / 7) / 2)
    assert statistics.constant_accuracy(["A", "AB", "A", "C"], "A") == 0.5


def test_kappa_by_hand():
    # Cohen's classic table: 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no.
    first = [1] * 25 + [0] * 25
    second = [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15
    assert statistics.cohen_kappa(first, second) == pytest.approx(0.4)
    assert statistics.cohen_kappa("AAB", "AAB") == 1
    assert statistics.cohen_kappa("AAA", "AAA") is None
    with pytest.raises(DataError, match="3 and 2 given"):
        statistics.cohen_kappa("AAB", "AA")


def test_kappa_is_that_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics", reason="the oracle, of the extra dev")
    rng = np.random.default_rng(1)
    first = rng.integers(4, size=200).tolist()
    second = [one if rng.random() < 0.6 else int(rng.integers(4)) for one in first]
    oracle = metrics.cohen_kappa_score(first, second)
    assert statistics.cohen_kappa(first, second) == pytest.approx(oracle, rel=1e-12)
