"""Rubric scores by hand and against the arithmetic of simple-evals, written out."""

import math

import numpy as np
import pytest

from megatron_chimed.errors import DataError
from megatron_chimed.evaluation.scores.rubric import (
    GradedAnswer,
    GradedCriterion,
    answer_score,
    clipped_mean,
    rubric_report,
    share_at_least,
)


def criterion(points, is_met, *tags):
    return GradedCriterion(points=points, is_met=is_met, tags=tags)


def test_negative_criteria_take_points_away():
    assert answer_score([criterion(7, True), criterion(3, False), criterion(-5, True)]) == 0.2
    assert answer_score([criterion(5, False), criterion(-10, True)]) == -2
    assert answer_score([criterion(5, True), criterion(-10, False)]) == 1


def test_without_positive_points_there_is_no_score():
    assert answer_score([criterion(-3, True)]) is None
    assert answer_score([]) is None


def test_points_must_be_numbers():
    with pytest.raises(DataError, match="nan points"):
        answer_score([criterion(math.nan, True)])


ANSWERS = [
    GradedAnswer(
        criteria=(criterion(5, True, "accuracy"), criterion(5, False, "completeness")),
        tags=("emergency",),
    ),
    GradedAnswer(
        criteria=(criterion(4, True, "accuracy"), criterion(-8, True, "accuracy", "safety")),
        tags=("emergency", "emergency"),
    ),
    GradedAnswer(criteria=(criterion(2, None),)),
    GradedAnswer(criteria=(criterion(-2, True, "safety"),)),
    GradedAnswer(criteria=(criterion(2, True, "completeness"),), tags=("chronic",)),
]


def test_a_report_accounts_for_every_answer():
    report = rubric_report(ANSWERS)
    assert report.score is not None
    # 0.5, -1 and 1: the mean is clipped, not each score.
    assert report.score.mean == pytest.approx(0.5 / 3)
    assert (report.score.num_answers, report.num_ungraded, report.num_without_positive) == (3, 1, 1)
    assert {tag: (one.mean, one.num_answers) for tag, one in report.by_tag.items()} == {
        "accuracy": (0.0, 2),
        "chronic": (1.0, 1),
        "completeness": (0.5, 2),
        "emergency": (0.0, 2),
    }


def test_nothing_to_score_is_no_score():
    report = rubric_report(ANSWERS[2:4])
    assert report.score is None
    assert report.by_tag == {}


def test_the_bootstrap_error_is_that_of_simple_evals():
    scores = np.random.default_rng(0).normal(0.4, 0.5, 80)
    rng = np.random.default_rng(1)
    means = [np.clip(rng.choice(scores, 80).mean(), 0, 1) for _ in range(4000)]
    found = clipped_mean(scores.tolist(), draws=4000)
    assert found.bootstrap_error == pytest.approx(np.std(means), rel=0.05)


def test_a_threshold_shows_what_partial_credit_hides():
    share, (low, high) = share_at_least([0.4, 0.5, 0.6, 0.9], 0.6)
    assert share == 0.5
    assert low < share < high
