"""Strengths against choix, against a direct search for the optimum, and where there is none."""

import math

import numpy as np
import pytest

from megatron_chimed.errors import DataError
from megatron_chimed.evaluation.scores.bradley_terry import fit_strengths

NAMES = ("base", "sft", "dpo", "rs")


def draw_counts(seed, num_models=4, most=30):
    rng = np.random.default_rng(seed)
    wins = rng.integers(1, most, size=(num_models, num_models))
    ties = rng.integers(1, most, size=(num_models, num_models))
    np.fill_diagonal(wins, 0)
    ties = np.triu(ties, 1)
    return wins.astype(float), (ties + ties.T).astype(float)


def log_likelihood(parameters, wins, ties):
    """Davidson's, term by term: log-strengths without the last, then log nu."""
    strengths = np.exp(np.append(parameters[:-1], 0.0))
    nu = np.exp(parameters[-1])
    total = 0.0
    for i in range(len(wins)):
        for j in range(len(wins)):
            if i != j:
                tie = nu * math.sqrt(strengths[i] * strengths[j])
                whole = strengths[i] + strengths[j] + tie
                total += wins[i, j] * math.log(strengths[i] / whole)
                total += ties[i, j] / 2 * math.log(tie / whole)
    return total


@pytest.mark.parametrize("seed", range(5))
def test_without_ties_strengths_are_those_of_choix(seed):
    choix = pytest.importorskip("choix", reason="the oracle, of the extra dev")
    wins, _ = draw_counts(seed)
    data = [(i, j) for i in range(4) for j in range(4) for _ in range(int(wins[i, j]))]
    oracle = choix.opt_pairwise(4, data, tol=1e-10)
    found = fit_strengths(NAMES, wins)
    assert found.log_strengths == pytest.approx(oracle - oracle.mean(), abs=1e-5)
    assert found.tie == 0


@pytest.mark.parametrize("seed", range(5))
def test_with_ties_strengths_are_the_optimum_of_the_likelihood(seed):
    optimize = pytest.importorskip("scipy.optimize", reason="the oracle, of the extra dev")
    wins, ties = draw_counts(seed)
    oracle = optimize.minimize(
        lambda x: -log_likelihood(x, wins, ties), np.zeros(4), method="BFGS", tol=1e-10
    ).x
    found = fit_strengths(NAMES, wins, ties)
    expected = np.append(oracle[:-1], 0.0)
    assert found.log_strengths == pytest.approx(expected - expected.mean(), abs=1e-4)
    assert math.log(found.tie) == pytest.approx(oracle[-1], abs=1e-4)


def test_no_small_step_is_more_likely():
    wins, ties = draw_counts(7)
    found = fit_strengths(NAMES, wins, ties)
    best = np.append(found.log_strengths[:-1] - found.log_strengths[-1], math.log(found.tie))
    highest = log_likelihood(best, wins, ties)
    for place in range(4):
        for step in (-1e-3, 1e-3):
            moved = best + step * np.eye(4)[place]
            assert log_likelihood(moved, wins, ties) < highest


def test_errors_are_those_of_the_information_by_differences():
    wins, ties = draw_counts(3)
    found = fit_strengths(NAMES, wins, ties)
    best = np.append(found.log_strengths[:-1] - found.log_strengths[-1], math.log(found.tie))
    h, eye = 1e-3, np.eye(4)

    def at(*steps):
        return log_likelihood(best + h * sum(steps), wins, ties)

    hessian = np.array(
        [[(at(a, b) - at(a, -b) - at(-a, b) + at(-a, -b)) / (4 * h * h) for b in eye] for a in eye]
    )
    covariance = np.zeros((4, 4))
    covariance[:3, :3] = np.linalg.inv(-hessian)[:3, :3]
    centre = np.eye(4) - 1 / 4
    expected = np.sqrt(np.diag(centre @ covariance @ centre.T))
    assert found.errors == pytest.approx(expected, rel=1e-4)
    low, high = found.interval(0)
    assert high - low == pytest.approx(2 * 1.959964 * found.errors[0])


def test_two_models_by_hand():
    # 6 wins, 2 ties, 3 losses are fitted exactly.
    found = fit_strengths(("a", "b"), np.array([[0, 6], [3, 0]]), np.array([[0, 2], [2, 0]]))
    assert found.probabilities(0, 1) == pytest.approx((6 / 11, 2 / 11, 3 / 11))
    assert found.log_strengths == pytest.approx([math.log(2) / 2, -math.log(2) / 2])


def test_the_strengths_behind_drawn_comparisons_come_back():
    rng = np.random.default_rng(0)
    true = np.array([0.8, 0.1, -0.2, -0.7])
    wins, ties = np.zeros((4, 4)), np.zeros((4, 4))
    for i in range(4):
        for j in range(i):
            weights = np.exp([true[i], true[j], (true[i] + true[j]) / 2 + math.log(0.6)])
            drawn = rng.multinomial(20_000, weights / weights.sum())
            wins[i, j], wins[j, i], ties[i, j] = drawn
            ties[j, i] = ties[i, j]
    found = fit_strengths(NAMES, wins, ties)
    assert found.log_strengths == pytest.approx(true, abs=0.03)
    assert found.tie == pytest.approx(0.6, abs=0.02)


def test_a_model_that_wins_everything_is_named_and_a_prior_helps():
    wins = np.array([[0, 5, 5], [0, 0, 3], [0, 2, 0]])
    with pytest.raises(DataError, match=r"sft never beats or ties base.*prior to 0\.5"):
        fit_strengths(NAMES[:3], wins)
    found = fit_strengths(NAMES[:3], wins, prior=0.5)
    assert np.argmax(found.log_strengths) == 0
    assert np.isfinite(found.log_strengths).all()


def test_models_that_never_met_are_named():
    wins = np.zeros((4, 4))
    wins[0, 1] = wins[1, 0] = wins[2, 3] = wins[3, 2] = 1
    with pytest.raises(DataError, match="no finite strengths"):
        fit_strengths(NAMES, wins)


def test_only_ties_mean_equal_models():
    ties = np.array([[0, 4], [4, 0]])
    found = fit_strengths(("a", "b"), np.zeros((2, 2)), ties)
    assert found.log_strengths.tolist() == [0, 0]
    assert found.probabilities(0, 1) == (0, 1, 0)


@pytest.mark.parametrize(
    ("wins", "ties", "message"),
    [
        (np.eye(2), None, "with itself"),
        (-np.ones((2, 2)), None, "must be counts"),
        (np.ones((2, 3)), None, r"need tables of \(2, 2\)"),
        (np.zeros((2, 2)), np.array([[0, 1], [0, 0]]), "ties symmetric"),
    ],
)
def test_tables_that_are_no_counts_are_refused(wins, ties, message):
    with pytest.raises(DataError, match=message):
        fit_strengths(("a", "b"), wins, ties)
