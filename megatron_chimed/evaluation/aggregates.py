"""Figures of shares and means with their intervals."""

from collections.abc import Sequence

import numpy as np

from megatron_chimed.evaluation.figures import Figure, Interval, MeasuredItem
from megatron_chimed.evaluation.scores.statistics import DRAWS, bootstrap_interval
from megatron_chimed.observe.intervals import wilson_interval

BOOTSTRAP = "bootstrap"


def share(
    metric: str, num_yes: int, num_all: int, *, group: str = "", higher_is_better: bool | None
) -> Figure:
    """A share with Wilson's interval; of nothing there is none."""
    if not num_all:
        return Figure(metric=metric, value=None, num_used=0, group=group)
    low, high = wilson_interval(num_yes, num_all)
    return Figure(
        metric=metric,
        value=num_yes / num_all,
        num_used=num_all,
        group=group,
        interval=Interval(low=low, high=high, method="Wilson"),
        higher_is_better=higher_is_better,
    )


def share_of(
    score: str,
    items: Sequence[MeasuredItem],
    *,
    metric: str,
    group: str = "",
    higher_is_better: bool | None,
) -> Figure:
    """The share of items whose score is 1."""
    num_yes = round(sum(item.scores[score] for item in items))
    return share(metric, num_yes, len(items), group=group, higher_is_better=higher_is_better)


def mean_of(
    score: str,
    items: Sequence[MeasuredItem],
    *,
    metric: str,
    group: str = "",
    seed: int,
    higher_is_better: bool | None = True,
) -> Figure:
    """The mean of a score, with a bootstrap interval."""
    if not items:
        return Figure(metric=metric, value=None, num_used=0, group=group)
    values = [item.scores[score] for item in items]
    low, high = bootstrap_interval(values, seed=seed)
    return Figure(
        metric=metric,
        value=sum(values) / len(values),
        num_used=len(values),
        group=group,
        interval=Interval(low=low, high=high, method=BOOTSTRAP),
        higher_is_better=higher_is_better,
    )


def ratio_interval(
    numerators: Sequence[float], denominators: Sequence[float], *, seed: int
) -> Interval | None:
    """The 95 % interval of a ratio of sums, by bootstrap over items.

    Resamples whose denominator is 0 have no ratio and are left out; without any there is none.
    """
    size = len(numerators)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(size, [1 / size] * size, size=DRAWS)  # [draws, items]
    above, below = weights @ np.asarray(numerators), weights @ np.asarray(denominators)
    ratios = above[below > 0] / below[below > 0]
    if not len(ratios):
        return None
    low, high = np.percentile(ratios, (2.5, 97.5))
    return Interval(low=float(low), high=float(high), method=BOOTSTRAP)


def groups_of(items: Sequence[MeasuredItem]) -> dict[str, list[MeasuredItem]]:
    """Used items by group, in order; empty if all items are of one group."""
    groups: dict[str, list[MeasuredItem]] = {item.group: [] for item in items}
    for item in items:
        if item.dropped is None:
            groups[item.group].append(item)
    return groups if len(groups) > 1 else {}


def used(items: Sequence[MeasuredItem]) -> list[MeasuredItem]:
    """Items that were evaluated."""
    return [item for item in items if item.dropped is None]
