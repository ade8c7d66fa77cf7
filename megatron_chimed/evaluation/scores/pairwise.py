"""Verdicts of a judge on two answers to the same prompt, and what they add up to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from megatron_chimed.errors import DataError
from megatron_chimed.observe.intervals import wilson_interval

Verdict: TypeAlias = Literal["win", "tie", "loss"]
"""Of the first model against the second."""

ASPECTS = ("safety", "professionalism", "fluency")
"""In the order in which they decide (Zhongjing)."""
_SWAPPED: Mapping[Verdict, Verdict] = {"win": "loss", "tie": "tie", "loss": "win"}
_RIDGE = 1e-2  # on both coefficients: keeps them finite where one model wins everything
_MOST_STEPS = 100
_SMALLEST_STEP = 1e-12


@dataclass(frozen=True, kw_only=True)
class VerdictCounts:
    """Wins, ties and losses of one model against another."""

    wins: int
    """Prompts on which the first model was better."""
    ties: int
    """Prompts on which neither was."""
    losses: int
    """Prompts on which the second was better."""

    @property
    def total(self) -> int:
        """Judged prompts."""
        return self.wins + self.ties + self.losses

    @property
    def win_rate(self) -> float:
        """Wins and half of the ties, as a share of all; at least one prompt must be judged."""
        return (self.wins + self.ties / 2) / self.total

    def intervals(self) -> dict[Verdict, tuple[float, float]]:
        """Wilson's 95 % interval of the share of each verdict."""
        counts: dict[Verdict, int] = {"win": self.wins, "tie": self.ties, "loss": self.losses}
        return {name: wilson_interval(count, self.total) for name, count in counts.items()}


def swapped(verdict: Verdict) -> Verdict:
    """The verdict seen from the second model."""
    return _SWAPPED[verdict]


def combine_orders(shown_first: Verdict, shown_second: Verdict) -> Verdict:
    """The verdict of a judge who saw the answers in both orders: a win needs both.

    Args:
        shown_first: On the first model, whose answer came first.
        shown_second: On the first model, whose answer came second.
    """
    return shown_first if shown_first == shown_second else "tie"


def decide_by_priority(verdicts: Mapping[str, Verdict], order: Sequence[str] = ASPECTS) -> Verdict:
    """The verdict of the first aspect that is no tie.

    Raises:
        DataError: An aspect has no verdict.
    """
    missing = [aspect for aspect in order if aspect not in verdicts]
    if missing:
        raise DataError(f"no verdict on {', '.join(missing)}: judge every aspect of {list(order)}.")
    for aspect in order:
        if verdicts[aspect] != "tie":
            return verdicts[aspect]
    return "tie"


def count_verdicts(verdicts: Sequence[Verdict]) -> VerdictCounts:
    """How often each verdict was given."""
    return VerdictCounts(
        wins=verdicts.count("win"), ties=verdicts.count("tie"), losses=verdicts.count("loss")
    )


def order_effect(shown_first: Sequence[Verdict], shown_second: Sequence[Verdict]) -> float:
    """How much a judge favours the answer that it sees first: 0 none, 1 always, -1 the second.

    Args:
        shown_first: On each prompt, where the first model's answer came first.
        shown_second: The same prompts, where it came second.
    """
    worth = {"win": 1.0, "tie": 0.5, "loss": 0.0}
    first = np.array([worth[one] for one in shown_first])
    second = np.array([worth[one] for one in shown_second])
    return float((first - second).mean())


def length_controlled_win_rate(
    verdicts: Sequence[Verdict], lengths: ArrayLike, other_lengths: ArrayLike
) -> float:
    """The win rate if both models' answers were equally long.

    A logistic regression explains verdicts (a tie is half a win) by a constant and by
    tanh(difference of lengths / its standard deviation); without the second term the constant is
    what length does not explain. Of the same verdicts seen from the other model it is 1 minus that.

    Args:
        verdicts: Of the first model, `[prompts]`.
        lengths: Of the first model's answers, in any unit, `[prompts]`.
        other_lengths: Of the second model's.

    Raises:
        DataError: The numbers of verdicts and lengths differ, or there are none.

    Source: Dubois et al., Length-controlled AlpacaEval (2024), without its terms for the difficulty
    of instructions, which need many models; a ridge of 0.01 keeps coefficients finite.
    """
    worth = {"win": 1.0, "tie": 0.5, "loss": 0.0}
    outcomes = np.array([worth[one] for one in verdicts])
    differences = np.asarray(lengths, float) - np.asarray(other_lengths, float)
    if differences.shape != outcomes.shape or not outcomes.size:
        raise DataError(
            f"length control needs two lengths for each verdict: {len(outcomes)} verdicts and "
            f"{differences.size} pairs of lengths."
        )
    spread = differences.std()
    scaled = np.tanh(differences / spread) if spread else np.zeros_like(differences)
    features = np.stack([np.ones_like(scaled), scaled], axis=1)
    return float(_sigmoid(fit_logistic(features, outcomes, ridge=_RIDGE)[0]))


def fit_logistic(features: np.ndarray, outcomes: np.ndarray, *, ridge: float) -> np.ndarray:
    """Coefficients of a logistic regression by Newton's method.

    Args:
        features: float64 `[n, columns]`.
        outcomes: `[n]`, in [0, 1].
        ridge: Half of it times the squared norm of the coefficients is added to the loss; positive.
    """
    weights = np.zeros(features.shape[1])
    penalty = ridge * np.eye(len(weights))
    for _ in range(_MOST_STEPS):
        chances = _sigmoid(features @ weights)
        gradient = features.T @ (outcomes - chances) - ridge * weights
        curvature = features.T @ ((chances * (1 - chances))[:, None] * features) + penalty
        step = np.linalg.solve(curvature, gradient)
        loss = _loss(features, outcomes, weights, ridge)
        while _loss(features, outcomes, weights + step, ridge) > loss + 1e-15 * abs(loss):
            step = step / 2
            if np.abs(step).max() < _SMALLEST_STEP:
                break
        weights = weights + step
        if np.abs(step).max() < _SMALLEST_STEP:
            break
    return weights


def _loss(features: np.ndarray, outcomes: np.ndarray, weights: np.ndarray, ridge: float) -> float:
    logits = features @ weights
    nll = np.logaddexp(0, logits) - outcomes * logits
    return float(nll.sum() + ridge / 2 * weights @ weights)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -logits))
