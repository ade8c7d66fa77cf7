"""Scores of answers that a judge graded by the criteria of a rubric, as HealthBench does."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from megatron_chimed.errors import DataError
from megatron_chimed.evaluation.scores.statistics import resampled_means
from megatron_chimed.observe.intervals import wilson_interval

BOOTSTRAP_DRAWS = 1000


@dataclass(frozen=True, kw_only=True)
class GradedCriterion:
    """One criterion of a rubric, as graded for one answer."""

    points: float
    """Positive for what is wanted, negative for what is harmful."""
    is_met: bool | None
    """For negative points: whether the bad thing happened. None: the judge gave no verdict."""
    tags: tuple[str, ...] = ()
    """Such as `axis:accuracy`."""


@dataclass(frozen=True, kw_only=True)
class GradedAnswer:
    """One answer with all criteria of its rubric."""

    criteria: tuple[GradedCriterion, ...]
    """The rubric of its prompt."""
    tags: tuple[str, ...] = ()
    """Of the prompt, such as `theme:emergency`."""


@dataclass(frozen=True, kw_only=True)
class RubricScore:
    """A score over answers."""

    mean: float
    """Mean of the answers' scores, clipped to [0, 1]."""
    bootstrap_error: float
    """Standard deviation of that clipped mean over resamples of the answers."""
    num_answers: int
    """Answers in it."""


@dataclass(frozen=True, kw_only=True)
class RubricReport:
    """What a set of graded answers scores, and which answers could not be scored."""

    score: RubricScore | None
    """None: no answer could be scored."""
    by_tag: Mapping[str, RubricScore]
    """By tag of a prompt (its answers' scores) or of a criterion (scores by its criteria)."""
    num_ungraded: int
    """Answers with a criterion on which the judge gave no verdict."""
    num_without_positive: int
    """Answers whose rubric has no criterion with positive points, so there is no best score."""


def answer_score(criteria: Sequence[GradedCriterion]) -> float | None:
    """Points of the criteria that are met over all positive points; negative if harm prevails.

    Returns:
        None without positive points.

    Raises:
        DataError: Points are not finite.
    """
    wrong = [one.points for one in criteria if not math.isfinite(one.points)]
    if wrong:
        raise DataError(f"a criterion has {wrong[0]} points: give each a number.")
    possible = math.fsum(one.points for one in criteria if one.points > 0)
    return math.fsum(one.points for one in criteria if one.is_met) / possible if possible else None


def rubric_report(
    answers: Sequence[GradedAnswer], *, seed: int = 0, draws: int = BOOTSTRAP_DRAWS
) -> RubricReport:
    """Scores over all answers and by tag.

    Source: OpenAI, HealthBench (2025), and simple-evals.
    """
    scores: list[float] = []
    by_tag: dict[str, list[float]] = {}
    num_ungraded = num_without_positive = 0
    for answer in answers:
        if any(one.is_met is None for one in answer.criteria):
            num_ungraded += 1
            continue
        score = answer_score(answer.criteria)
        if score is None:
            num_without_positive += 1
            continue
        scores.append(score)
        for tag in dict.fromkeys(answer.tags):
            by_tag.setdefault(tag, []).append(score)
        for tag in dict.fromkeys(tag for one in answer.criteria for tag in one.tags):
            part = answer_score([one for one in answer.criteria if tag in one.tags])
            if part is not None:
                by_tag.setdefault(tag, []).append(part)
    return RubricReport(
        score=clipped_mean(scores, seed=seed, draws=draws) if scores else None,
        by_tag={tag: clipped_mean(by_tag[tag], seed=seed, draws=draws) for tag in sorted(by_tag)},
        num_ungraded=num_ungraded,
        num_without_positive=num_without_positive,
    )


def clipped_mean(
    scores: Sequence[float], *, seed: int = 0, draws: int = BOOTSTRAP_DRAWS
) -> RubricScore:
    """The mean, clipped to [0, 1], of at least one score, with its bootstrap error."""
    values = np.asarray(scores, float)
    means = np.clip(resampled_means(values, seed=seed, draws=draws), 0, 1)
    mean = float(np.clip(values.mean(), 0, 1))
    return RubricScore(mean=mean, bootstrap_error=float(means.std()), num_answers=len(values))


def share_at_least(scores: Sequence[float], threshold: float) -> tuple[float, tuple[float, float]]:
    """Share of answers that reach a score, which partial credit hides, with Wilson's interval."""
    reached = sum(score >= threshold for score in scores)
    return reached / len(scores), wilson_interval(reached, len(scores))
