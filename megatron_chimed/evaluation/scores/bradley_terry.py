"""Strengths of several models from pairwise comparisons with ties.

Davidson's model: models i and j with log-strengths a and b win, lose and tie in the proportions
e^a : e^b : nu e^((a + b) / 2). Without ties nu is 0, and that is the model of Bradley and Terry.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_chimed.errors import DataError
from megatron_chimed.observe.intervals import Z_95

_MOST_STEPS = 200
_TOLERANCE = 1e-12  # of the gradient, relative to the number of comparisons


@dataclass(frozen=True, kw_only=True)
class Strengths:
    """Fitted strengths of models."""

    names: tuple[str, ...]
    """Models, in the order of the rows."""
    log_strengths: np.ndarray
    """float64 `[models]`; their mean is 0."""
    errors: np.ndarray
    """Standard errors of these, `[models]`, from the Fisher information."""
    tie: float
    """Davidson's nu; 0 without ties, infinite if all comparisons were ties."""

    def interval(self, place: int) -> tuple[float, float]:
        """The 95 % interval of one log-strength."""
        middle, half = float(self.log_strengths[place]), Z_95 * float(self.errors[place])
        return middle - half, middle + half

    def probabilities(self, first: int, second: int) -> tuple[float, float, float]:
        """Chances that the first wins, ties with, and loses to the second."""
        if math.isinf(self.tie):
            return 0.0, 1.0, 0.0
        half = float(self.log_strengths[first] - self.log_strengths[second]) / 2
        weights = np.array([math.exp(half), self.tie, math.exp(-half)])
        win, tie, loss = (weights / weights.sum()).tolist()
        return win, tie, loss


def fit_strengths(
    names: Sequence[str], wins: np.ndarray, ties: np.ndarray | None = None, *, prior: float = 0.0
) -> Strengths:
    """The strengths under which the comparisons are most likely.

    Args:
        names: Models.
        wins: `[models, models]`: how often the row's model won against the column's.
        ties: `[models, models]`, symmetric: how often the two tied; None: never.
        prior: Imagined wins of either model in each pair that met; 0.5 keeps strengths finite
            where a model won or lost everything.

    Raises:
        DataError: Counts are no counts, or no finite strengths fit them best.

    Source: Davidson, On extending the Bradley-Terry model to accommodate ties (JASA 65, 1970),
    maximized by Newton's method: the log-likelihood is concave in the log-strengths and log nu.
    """
    wins = np.asarray(wins, float)
    ties = np.zeros_like(wins) if ties is None else np.asarray(ties, float)
    _check_counts(names, wins, ties)
    wins = wins + prior * ((wins + wins.T + ties) > 0)
    num_models = len(names)
    if not wins.any():
        errors = np.full(num_models, np.nan)
        return _strengths(names, np.zeros(num_models), errors, math.inf)
    _check_connected(names, wins, ties)
    features, weights, groups = _design(wins, ties)
    solution, information = _newton(features, weights, groups, free=num_models - 1)
    log_strengths = np.append(solution[: num_models - 1], 0.0)
    # The last model is the zero while fitting; the covariance moves with the mean.
    covariance = np.zeros((num_models, num_models))
    covariance[:-1, :-1] = np.linalg.inv(information)[: num_models - 1, : num_models - 1]
    centre = np.eye(num_models) - 1 / num_models
    errors = np.sqrt(np.maximum(np.diag(centre @ covariance @ centre.T), 0))
    tie = float(np.exp(solution[-1])) if ties.any() else 0.0
    return _strengths(names, log_strengths - log_strengths.mean(), errors, tie)


def _strengths(
    names: Sequence[str], log_strengths: np.ndarray, errors: np.ndarray, tie: float
) -> Strengths:
    return Strengths(names=tuple(names), log_strengths=log_strengths, errors=errors, tie=tie)


def _design(wins: np.ndarray, ties: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One row for each outcome of each pair that met.

    Returns:
        float64 `[outcomes, models - 1 (+ 1 with ties)]`, what each parameter adds to the outcome's
        logit; how often it happened, `[outcomes]`; and the pair that it is of, `[outcomes]`.
    """
    num_models, has_ties = len(wins), bool(ties.any())
    features, counts, groups = [], [], []
    for first in range(num_models):
        for second in range(first + 1, num_models):
            if not wins[first, second] + wins[second, first] + ties[first, second]:
                continue
            win, loss = np.zeros(num_models + 1), np.zeros(num_models + 1)
            win[first], loss[second] = 1, 1
            tie = (win + loss) / 2
            tie[-1] = 1
            outcomes = [(win, wins[first, second]), (loss, wins[second, first])]
            outcomes += [(tie, ties[first, second])] if has_ties else []
            for row, count in outcomes:
                features.append(row)
                counts.append(count)
                groups.append(first * num_models + second)
    kept = [*range(num_models - 1), *([num_models] if has_ties else [])]
    return np.array(features)[:, kept], np.array(counts), np.unique(groups, return_inverse=True)[1]


def _newton(
    features: np.ndarray, counts: np.ndarray, groups: np.ndarray, *, free: int
) -> tuple[np.ndarray, np.ndarray]:
    """The maximum of a conditional logit likelihood, and the information matrix there."""
    solution = np.zeros(features.shape[1])
    totals = np.bincount(groups, counts)
    value = -math.inf
    step = np.zeros_like(solution)
    information = np.eye(len(solution))
    for _ in range(_MOST_STEPS):
        logits = features @ (solution + step)
        highest = np.full(len(totals), -np.inf)
        np.maximum.at(highest, groups, logits)
        weights = np.exp(logits - highest[groups])
        sums = np.bincount(groups, weights)
        reached = float(counts @ (logits - highest[groups] - np.log(sums)[groups]))
        if reached < value and np.abs(step).max() > 1e-14:
            step = step / 2
            continue
        solution, value = solution + step, reached
        shares = weights / sums[groups]
        expected = totals[groups] * shares
        gradient = features.T @ (counts - expected)
        means = np.zeros((len(totals), features.shape[1]))
        np.add.at(means, groups, shares[:, None] * features)
        information = features.T @ (expected[:, None] * features) - means.T @ (
            totals[:, None] * means
        )
        if np.abs(gradient).max() <= _TOLERANCE * counts.sum():
            break
        step = np.linalg.solve(information, gradient)
    return solution, information


def _check_counts(names: Sequence[str], wins: np.ndarray, ties: np.ndarray) -> None:
    shape = (len(names), len(names))
    if wins.shape != shape or ties.shape != shape or len(names) < 2:
        raise DataError(
            f"strengths of {len(names)} models need tables of {shape}, at least (2, 2): wins have "
            f"{wins.shape}, ties {ties.shape}."
        )
    counts = np.stack([wins, ties])
    if not np.isfinite(counts).all() or (counts < 0).any() or (ties != ties.T).any():
        raise DataError(
            "wins and ties must be counts, and ties symmetric: nothing else was fitted."
        )
    if np.diag(wins).any() or np.diag(ties).any():
        raise DataError("a model was compared with itself: leave such comparisons out.")


def _check_connected(names: Sequence[str], wins: np.ndarray, ties: np.ndarray) -> None:
    """Finite strengths exist if every model beats or ties every other, directly or in steps."""
    reaches = (wins + ties > 0) | np.eye(len(names), dtype=bool)
    for middle in range(len(names)):
        reaches |= reaches[:, middle : middle + 1] & reaches[middle : middle + 1]
    if not reaches.all():
        loser, winner = (int(place[0]) for place in np.nonzero(~reaches))
        raise DataError(
            f"no finite strengths: {names[loser]} never beats or ties {names[winner]}, directly or "
            "by way of others. Add comparisons, or set prior to 0.5, which gives either model of "
            "each pair half a win."
        )
