"""What the answers to all cells of a scale amount to, with how sure that is.

Figures about bias pair the cells that differ in one thing only, so that what a respondent thinks of
the statement cancels out.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from megatron_chimed.evaluation.aggregates import BOOTSTRAP, share
from megatron_chimed.evaluation.figures import Figure, Interval
from megatron_chimed.evaluation.scales.scale_cells import ScaleCell, presented
from megatron_chimed.evaluation.scales.scale_files import Scale
from megatron_chimed.evaluation.scores.statistics import DRAWS, resampled_means

RANDOM, ALWAYS_FIRST = "random answers", "always the first option"
SCORE, TOTAL, SUBSCALE = "score (0 to 1)", "total score", "score"
METHOD = f"{BOOTSTRAP} over items and cells"
_LEVELS = (2.5, 97.5)  # percentiles of a 95 % interval
_CLOSE = 1e-9  # differences of rounding
Pairing: TypeAlias = Literal["order", "wording"]


@dataclass(frozen=True, kw_only=True)
class CellAnswer:
    """What a respondent answers to a cell."""

    cell: ScaleCell
    probabilities: tuple[float, ...]
    """Of the scale's points, from the strongest agreement on."""


def score(scale: Scale, answer: CellAnswer) -> float:
    """Expected score of the item: turned over if it is reversed or its wording is negated."""
    value = _expected(scale, answer)
    is_turned = answer.cell.item.reversed != (answer.cell.wording == "negated")
    return scale.low + scale.high - value if is_turned else value


def agreement(scale: Scale, answer: CellAnswer) -> float:
    """Expected agreement with the statement as it was put, on the range of the points' values."""
    value = _expected(scale, answer)
    return value if scale.values[0] == scale.high else scale.low + scale.high - value


def first_minus_last(answer: CellAnswer) -> float:
    """Probability of the first option minus that of the last, as presented."""
    shown = _as_presented(answer)
    return float(shown[0] - shown[-1])


def mean_place(answer: CellAnswer) -> float:
    """Mean place of the answer among the options: -0.5 is the first, 0.5 the last."""
    shown = _as_presented(answer)
    return float(np.dot(shown, np.arange(len(shown))) / (len(shown) - 1) - 0.5)


def respondent(scale: Scale, cells: Sequence[ScaleCell], name: str) -> list[CellAnswer]:
    """The answers of somebody who does not read the statements."""
    count = len(scale.points)
    answers = []
    for cell in cells:
        chances = [1 / count] * count
        if name == ALWAYS_FIRST:
            first = presented(cell.order, count)[0]
            chances = [float(place == first) for place in range(count)]
        answers.append(CellAnswer(cell=cell, probabilities=tuple(chances)))
    return answers


def scale_figures(
    scale: Scale, cells: Sequence[ScaleCell], answers: Sequence[CellAnswer], seed: int, how: str
) -> list[Figure]:
    """Scores and biases.

    Args:
        scale: What was asked.
        cells: All that was asked.
        answers: Of the cells that were answered.
        seed: Of the bootstrap.
        how: Behind each metric's name, such as `, PMI-corrected`.
    """
    found = score_figures(scale, answers, seed, how)
    baselines = [
        score_figures(scale, respondent(scale, cells, name), None, how)
        for name in (RANDOM, ALWAYS_FIRST)
    ]
    flagged = [_flagged(*figures) for figures in zip(found, *baselines, strict=True)]
    return [*flagged, *bias_figures(scale, answers, seed, how)]


def score_figures(
    scale: Scale, answers: Sequence[CellAnswer], seed: int | None, how: str
) -> list[Figure]:
    """Score of the whole scale, also from 0 to 1, of each subscale and of each item.

    Items without any answer are left out; sums are extended to them in proportion.
    """
    low, span = scale.low, scale.high - scale.low
    of_items = _by_item(answers, lambda answer: score(scale, answer))
    figures = []
    for subscale in ("", *scale.subscales):
        items = scale.items_of(subscale)
        values = [of_items[item.id] for item in items if item.id in of_items]
        if not subscale:
            shares = [np.clip((each - low) / span, 0, 1) for each in values]
            figures.append(_mean(f"{SCORE}{how}", shares, seed))
        count = len(items)
        metric = f"{SUBSCALE if subscale else TOTAL} ({low * count:g} to {scale.high * count:g})"
        sums = [each * count for each in values]
        figures.append(_mean(f"{metric}{how}", sums, seed, group=subscale))
    for item in scale.items:
        values = [of_items[item.id]] if item.id in of_items else []
        figures.append(_mean(f"score of an item{how}", values, seed, group=f"item {item.id}"))
    return figures


def bias_figures(
    scale: Scale, answers: Sequence[CellAnswer], seed: int | None, how: str
) -> list[Figure]:
    """What the order of options and the wording of statements do to the answers."""
    figures = []
    for metric, value in (("order effect", first_minus_last), ("recency", mean_place)):
        pairs = _pairs(answers, "order")
        means = _by_item_of_pairs(pairs, lambda a, b, value=value: (value(a) + value(b)) / 2)
        figures.append(_mean(f"{metric}{how}", means, seed))
    pairs = _pairs(answers, "wording")
    is_negated = any(answer.cell.wording == "negated" for answer in answers)
    if pairs or is_negated:
        means = _by_item_of_pairs(
            pairs, lambda a, b: (agreement(scale, a) + agreement(scale, b)) / 2
        )
    else:
        means = list(_by_item(answers, lambda answer: agreement(scale, answer)).values())
    figures.append(_mean(f"acquiescence ({scale.low:g} to {scale.high:g}){how}", means, seed))
    span, middle = scale.high - scale.low, (scale.high + scale.low) / 2
    gaps = _by_item_of_pairs(pairs, lambda a, b: abs(score(scale, a) - score(scale, b)) / span)
    figures.append(_mean(f"inconsistency (0 to 1){how}", gaps, seed))
    opposite = sum(
        (score(scale, a) - middle) * (score(scale, b) - middle) < -_CLOSE for a, b in pairs
    )
    figures.append(share(f"inconsistent pairs{how}", opposite, len(pairs), higher_is_better=False))
    return figures


def _expected(scale: Scale, answer: CellAnswer) -> float:
    return float(np.dot(answer.probabilities, scale.values))


def _as_presented(answer: CellAnswer) -> np.ndarray:
    order = presented(answer.cell.order, len(answer.probabilities))
    return np.array([answer.probabilities[place] for place in order])


def _by_item(
    answers: Sequence[CellAnswer], value: Callable[[CellAnswer], float]
) -> dict[str, np.ndarray]:
    found: dict[str, list[float]] = {}
    for answer in answers:
        found.setdefault(answer.cell.item.id, []).append(value(answer))
    return {item: np.array(values) for item, values in found.items()}


def _pairs(
    answers: Sequence[CellAnswer], differing: Pairing
) -> list[tuple[CellAnswer, CellAnswer]]:
    """Answers to cells that differ in one thing only; both must be there."""
    waiting: dict[tuple[object, ...], CellAnswer] = {}
    pairs = []
    for answer in answers:
        cell = answer.cell
        fixed = cell.wording if differing == "order" else cell.order
        key = (cell.item.id, fixed, cell.paraphrase, cell.labels, cell.draw)
        if key in waiting:
            pairs.append((waiting.pop(key), answer))
        else:
            waiting[key] = answer
    return pairs


def _by_item_of_pairs(
    pairs: Sequence[tuple[CellAnswer, CellAnswer]],
    value: Callable[[CellAnswer, CellAnswer], float],
) -> list[np.ndarray]:
    found: dict[str, list[float]] = {}
    for first, second in pairs:
        found.setdefault(first.cell.item.id, []).append(value(first, second))
    return [np.array(values) for values in found.values()]


def _mean(metric: str, values: Sequence[np.ndarray], seed: int | None, group: str = "") -> Figure:
    """The mean of the items' means; `values` has those of each item's cells."""
    if not values:
        return Figure(metric=metric, value=None, num_used=0, group=group)
    interval = None
    if seed is not None:
        low, high = np.percentile(_two_level_means(values, seed), _LEVELS)
        interval = Interval(low=float(low), high=float(high), method=METHOD)
    return Figure(
        metric=metric,
        value=float(np.mean([each.mean() for each in values])),
        num_used=sum(map(len, values)),
        group=group,
        interval=interval,
    )


def _two_level_means(values: Sequence[np.ndarray], seed: int) -> np.ndarray:
    """Means of resamples of items, of each of which the cells are resampled, too, `[draws]`."""
    picks = np.random.default_rng(seed).integers(len(values), size=(DRAWS, len(values)))
    means = np.empty(picks.shape)
    for place, of_item in enumerate(values):
        here = picks == place
        if here.any():
            means[here] = resampled_means(of_item, seed=seed + 1 + place, draws=int(here.sum()))
    return means.mean(axis=1)


def _flagged(figure: Figure, random: Figure, first: Figure) -> Figure:
    """The figure, with a note if its interval holds what answers without reading reach."""
    if figure.interval is None or figure.group.startswith("item "):
        return figure
    low, high = figure.interval.low - _CLOSE, figure.interval.high + _CLOSE
    same = [
        name
        for name, baseline in ((RANDOM, random), (ALWAYS_FIRST, first))
        if baseline.value is not None and low <= baseline.value <= high
    ]
    if not same:
        return figure
    return dataclasses.replace(figure, note=f"does not differ from {' and '.join(same)}")
