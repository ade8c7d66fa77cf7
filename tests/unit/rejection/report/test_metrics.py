"""Estimators against enumeration, closed forms and printed tables."""

import math
import statistics
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_chimed.rejection.report.metrics import (
    Estimate,
    best_of_n,
    best_of_n_kl,
    distinct,
    doublings,
    mean_over_prompts,
    self_similarity,
    spearman,
    spearman_within,
    unique_share,
)

SCORES = st.lists(st.integers(-20, 20).map(lambda n: n / 4), min_size=1, max_size=6)


@given(st.lists(SCORES, min_size=1, max_size=4))
def test_best_of_n_is_the_mean_over_all_subsets(scores):
    most = max(map(len, scores))
    full = [found for found in scores if len(found) == most]
    expected = [
        statistics.fmean(statistics.fmean(map(max, combinations(f, n))) for f in full)
        for n in range(1, most + 1)
    ]
    assert best_of_n([np.array(found) for found in scores]) == pytest.approx(expected)


def test_best_of_n_of_many_candidates():
    """The expected maximum of n of 1 ... m is n (m + 1) / (n + 1)."""
    m, n = 1000, np.arange(1, 1001)
    curve = best_of_n([np.random.default_rng(0).permutation(np.arange(1.0, m + 1))])
    assert curve == pytest.approx(n * (m + 1) / (n + 1), rel=1e-9)
    assert len(best_of_n([])) == len(best_of_n([np.empty(0)])) == 0


def test_the_kl_of_best_of_n_is_bounded():
    """Of k equally likely answers the bound is reached as k grows."""
    n = np.arange(1, 65)
    for k, slack in ((10, 3.0), (100_000, 0.01)):
        shares = np.arange(k + 1) / k
        best = np.diff(shares[None] ** n[:, None], axis=1)  # p(the best is the j-th worst)
        exact = (best * np.log(np.maximum(best, 1e-300) * k)).sum(axis=1)
        gap = best_of_n_kl(n) - exact
        assert (gap > -1e-9).all() and (gap < slack).all()


@given(st.lists(st.lists(st.integers(0, 5), max_size=8), max_size=6), st.integers(1, 3))
def test_distinct_counts_ngrams_within_answers(answers, size):
    ngrams = {tuple(a[i : i + size]) for a in answers for i in range(len(a) - size + 1)}
    total = sum(map(len, answers))
    assert distinct(answers, size) == (pytest.approx(len(ngrams) / total) if total else None)


def test_unique_share():
    assert unique_share(["a", "b", "a", "a"]) == 0.5


@given(st.lists(st.lists(st.text("abcd", min_size=3, max_size=12), max_size=4), max_size=4))
def test_similarity_is_that_of_character_3_grams(prompts):
    def grams(text):
        return {text[i : i + 3] for i in range(len(text) - 2)}

    means = []
    for texts in prompts:
        pairs = [(grams(a), grams(b)) for a, b in combinations(texts, 2)]
        if pairs:
            means.append(statistics.fmean(len(a & b) / len(a | b) for a, b in pairs))
    expected = pytest.approx(statistics.fmean(means)) if means else None
    assert self_similarity(prompts) == expected


def test_similarity_looks_at_four_answers_to_a_prompt():
    alike, other = ["发热伴咳嗽三天"] * 4, ["体温最高三十九度"]
    assert self_similarity([alike + other]) == 1.0
    assert self_similarity([alike[:1] + other]) == 0.0


def by_definition(x, y):
    """Pearson's correlation of mean ranks, each found by counting."""
    ranks = [[sum(b < a for b in v) + (v.count(a) + 1) / 2 for a in v] for v in (x, y)]
    return statistics.correlation(*ranks)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=12))
def test_spearman_is_the_correlation_of_ranks(pairs):
    x, y = map(list, zip(*pairs, strict=True))
    constant = len(set(x)) == 1 or len(set(y)) == 1
    expected = None if constant else pytest.approx(by_definition(x, y))
    assert spearman(np.array(x), np.array(y)) == expected


def test_spearman_of_rising_values_and_of_none():
    x = np.array([1.0, 2.0, 5.0, 9.0])
    assert spearman(x, np.exp(x)) == pytest.approx(1.0)
    assert spearman(x, -x) == pytest.approx(-1.0)
    assert spearman(np.empty(0), np.empty(0)) is None


def test_within_prompts_leads_over_their_own_means_are_ranked():
    """Longer answers to a prompt score lower, while the prompt with long ones scores high."""
    prompts = [7, 2, 7, 2, 7, 2]
    lengths, scores = np.array([1, 31, 2, 32, 4, 34]), np.array([2.5, 9.5, 2.0, 7.0, 0.3, 7.5])
    # -4/3, -1/3 and 5/3 of both prompts, but for rounding: equal ranks.
    leads = ([-4, -4, -1, -1, 5, 5], [0.9, 1.5, 0.4, -1.0, -1.3, -0.5])
    assert spearman(lengths, scores) > 0
    assert spearman_within(prompts, lengths, scores) == pytest.approx(by_definition(*leads))


def test_prompts_whose_answers_are_alike_tell_nothing_of_a_correlation():
    """Ten scores of 0.1 have a mean that is another number, so that each seems to lead."""
    rest = [0] * 10 + [1] * 3 + [2]
    lengths = np.array([*range(1, 11), 5, 5, 5, 9])
    scores = np.array([0.1] * 10 + [0.3, 0.7, 0.9] + [4.0])
    assert sum([0.1] * 10) / 10 != 0.1
    assert spearman_within(rest, lengths, scores) is None
    assert spearman_within([], np.empty(0), np.empty(0)) is None
    told = spearman_within(
        [*rest, 8, 8, 8], np.array([*lengths, 1, 2, 3]), np.array([*scores, 3.0, 1.0, 2.0])
    )
    assert told == pytest.approx(-0.5)


def test_a_mean_counts_each_prompt_once():
    prompts = [0, 0, 1, 1, 2, 2]
    values = np.array([1.0, 3.0, 4.0, 8.0, 7.0, 7.0])
    found = mean_over_prompts(prompts, values)
    means = [2.0, 6.0, 7.0]
    assert found.mean == pytest.approx(5.0) and found.prompts == 3
    assert found.error == pytest.approx(statistics.stdev(means) / math.sqrt(3))
    assert mean_over_prompts([4, 4], np.array([1.0, 2.0])) == Estimate(
        mean=1.5, error=None, prompts=1
    )


def test_the_error_of_a_ratio_is_how_much_it_varies():
    """Over 3,000 draws of 60 prompts whose answers and lengths go together."""
    random = np.random.default_rng(3)
    found = []
    for _ in range(3000):
        prompts = np.repeat(np.arange(60), random.integers(1, 4, 60))
        tokens = random.integers(5, 40, len(prompts))
        easy = random.normal(0, 0.2, 60)[prompts]
        found.append(mean_over_prompts(prompts, tokens * (1.5 + easy), tokens))
    means = [estimate.mean for estimate in found]
    assert statistics.fmean(means) == pytest.approx(1.5, abs=0.005)
    errors = statistics.fmean(estimate.error for estimate in found)
    assert errors == pytest.approx(statistics.stdev(means), rel=0.05)
    held = [low < 1.5 < high for low, high in (estimate.interval for estimate in found)]
    assert 0.93 < statistics.fmean(held) < 0.97


@pytest.mark.parametrize(
    ("prompts", "t", "tolerance"),
    # Student's t at 97.5 %, as statistical tables print it.
    [(3, 4.303, 0.035), (4, 3.182, 0.008), (6, 2.571, 0.0015), (31, 2.042, 0.001)],
)
def test_intervals_are_students(prompts, t, tolerance):
    low, high = Estimate(mean=1.0, error=2.0, prompts=prompts).interval
    assert (high - 1.0) / 2.0 == pytest.approx(t, rel=tolerance)
    assert high - 1.0 == pytest.approx(1.0 - low)


def test_two_prompts_have_no_interval():
    assert Estimate(mean=1.0, error=2.0, prompts=2).interval is None
    assert Estimate(mean=1.0, error=None, prompts=1).interval is None


def test_doublings_end_with_the_last():
    assert [doublings(n) for n in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]
    for n in range(1, 70):
        assert all(a < b <= 2 * a for a, b in pairwise(doublings(n)))
