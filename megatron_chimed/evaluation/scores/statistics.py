"""How sure a score is, whether two models differ, and what answers without knowledge reach.

Items are the sample: intervals say how far a score would move with other questions of the same
kind, not with other seeds or prompts. For an interval of a proportion: `observe.intervals`.
"""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from megatron_chimed.errors import DataError

DRAWS = 2000
SLOW_DRAWS = 500  # of statistics that are computed one resample at a time
_CHUNK = 1 << 22  # values drawn at once: 32 MiB
_LEVELS = (2.5, 97.5)  # percentiles of a 95 % interval


@dataclass(frozen=True, kw_only=True)
class PairedComparison:
    """Two models on the same items."""

    difference: float
    """Mean of the first minus mean of the second."""
    low: float
    """Lower end of the 95 % interval of the difference, by bootstrap over items."""
    high: float
    """Upper end."""
    p_value: float
    """Two-sided: how often chance alone makes a difference as large between equal models."""
    test: str
    """`mcnemar_exact`, or `permutation_exact` and `permutation` for scores that are not 0 or 1."""
    num_items: int
    """Items that both answered."""


def sample_stderr(values: ArrayLike) -> float | None:
    """Sample standard deviation (n - 1) over the square root of n; None for fewer than two."""
    values = _checked(values)
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None


def bootstrap_interval(
    values: ArrayLike, *, seed: int = 0, draws: int = DRAWS
) -> tuple[float, float]:
    """The 95 % percentile interval of a mean.

    Args:
        values: One score per item, `[n]`, at least one.
        seed: Equal seeds give equal intervals.
        draws: Number of resamples.

    Raises:
        DataError: There is no value, or one is not finite.

    Source: Efron and Tibshirani, An introduction to the bootstrap (1993), chapter 13.
    """
    low, high = np.percentile(resampled_means(_checked(values), seed=seed, draws=draws), _LEVELS)
    return float(low), float(high)


def resampled_means(values: np.ndarray, *, seed: int, draws: int = DRAWS) -> np.ndarray:
    """Means of bootstrap resamples, `[draws]`, of values `[n]`."""
    rng, size = np.random.default_rng(seed), len(values)
    step = max(1, _CHUNK // size)
    means = [
        values[rng.integers(size, size=(min(step, draws - start), size))].mean(axis=1)
        for start in range(0, draws, step)
    ]
    return np.concatenate(means)


def bootstrap_statistic(
    statistic: Callable[..., float | None],
    *columns: Sequence[Any],
    seed: int = 0,
    draws: int = SLOW_DRAWS,
) -> tuple[float, float] | None:
    """The 95 % percentile interval of any statistic of items, such as kappa.

    Args:
        statistic: Takes the columns of a resample.
        columns: Values of each item, `[n]` each.
        seed: Equal seeds give equal intervals.
        draws: Number of resamples.

    Returns:
        None if the statistic is None for every resample; otherwise resamples without one are
        left out.
    """
    rng, size = np.random.default_rng(seed), len(columns[0])
    values = []
    for _ in range(draws):
        places = rng.integers(size, size=size).tolist()
        value = statistic(*([column[place] for place in places] for column in columns))
        values += [] if value is None else [value]
    if not values:
        return None
    low, high = np.percentile(values, _LEVELS)
    return float(low), float(high)


def micro_average(groups: Mapping[str, ArrayLike]) -> float:
    """The mean over all items, so that large groups weigh more (as lm-eval weighs subjects)."""
    return float(np.concatenate([_checked(values) for values in groups.values()]).mean())


def macro_average(groups: Mapping[str, ArrayLike]) -> float:
    """The mean of the groups' means, so that every group weighs the same."""
    return float(np.mean([_checked(values).mean() for values in groups.values()]))


def macro_interval(
    groups: Mapping[str, ArrayLike], *, seed: int = 0, draws: int = DRAWS
) -> tuple[float, float]:
    """The 95 % interval of a macro average; items are resampled within their group."""
    means = [
        resampled_means(_checked(values), seed=seed + place, draws=draws)
        for place, values in enumerate(groups.values())
    ]
    low, high = np.percentile(np.mean(means, axis=0), _LEVELS)
    return float(low), float(high)


def compare_paired(
    first: ArrayLike, second: ArrayLike, *, seed: int = 0, draws: int = DRAWS
) -> PairedComparison:
    """Compares two models by their scores on the same items, in the same order.

    Scores of 0 and 1 are compared by McNemar's exact test, others by a permutation test.

    Raises:
        DataError: The numbers of scores differ, there are none, or one is not finite.
    """
    first, second = _checked(first), _checked(second)
    if len(first) != len(second):
        raise DataError(
            f"a paired test needs the same items: one model has {len(first)} scores, the other "
            f"{len(second)}. Compare the items that both answered."
        )
    difference = first - second
    low, high = bootstrap_interval(difference, seed=seed, draws=draws)
    if np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all():
        p_value = mcnemar_exact(int((difference > 0).sum()), int((difference < 0).sum()))
        test = "mcnemar_exact"
    else:
        p_value, is_exact = permutation_test(difference, seed=seed, draws=draws)
        test = "permutation_exact" if is_exact else "permutation"
    return PairedComparison(
        difference=float(difference.mean()),
        low=low,
        high=high,
        p_value=p_value,
        test=test,
        num_items=len(difference),
    )


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided p-value of the items that only one of two models got right.

    Source: McNemar (1947) with the binomial distribution instead of its approximation.
    """
    count, fewer = only_first + only_second, min(only_first, only_second)
    term = tail = 1
    for k in range(fewer):
        term = term * (count - k) // (k + 1)
        tail += term
    # Integers throughout: 2^-count is below the smallest float for 1,100 items.
    return min(1.0, 2 * tail / (1 << count)) if count else 1.0


def permutation_test(
    differences: ArrayLike, *, seed: int = 0, draws: int = DRAWS
) -> tuple[float, bool]:
    """Two-sided p-value of a mean of paired differences whose signs are random between equals.

    Returns:
        The p-value, and whether all signs were tried: so it is if there are at most `draws`.

    Source: Phipson and Smyth, Permutation p-values should never be zero (2010).
    """
    values = _checked(differences)
    values = values[values != 0]
    observed, size = abs(values.sum()), len(values)
    nearly = observed * (1 - 1e-12)  # sums of the same terms in another order count as equal
    if size <= math.log2(draws):
        signs = 1 - 2 * ((np.arange(1 << size)[:, None] >> np.arange(size)) & 1)
        return float((np.abs(signs @ values) >= nearly).mean()), True
    rng, extreme = np.random.default_rng(seed), 0
    step = max(1, _CHUNK // size)
    for start in range(0, draws, step):
        signs = 1.0 - 2 * rng.integers(2, size=(min(step, draws - start), size))
        extreme += int((np.abs(signs @ values) >= nearly).sum())
    return (1 + extreme) / (1 + draws), False


def random_accuracy(num_options: Sequence[int], *, multiple: bool = False) -> float:
    """Expected accuracy of answers drawn at random.

    Args:
        num_options: Of each item, `[n]`.
        multiple: Whether an answer is any non-empty set of options instead of one.
    """
    chances = [1 / (2**count - 1 if multiple else count) for count in num_options]
    return math.fsum(chances) / len(chances)


def constant_accuracy(right: Sequence[str], answer: str) -> float:
    """Accuracy of always giving the same answer, such as `A`."""
    return sum(one == answer for one in right) / len(right)


def cohen_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float | None:
    """Agreement of two judges beyond chance: 1 for equal labels, 0 for chance.

    Args:
        first: Labels of one judge.
        second: Labels of the other for the same items.

    Returns:
        None if both give one and the same label to everything: chance alone agrees fully then.

    Raises:
        DataError: The numbers of labels differ, or there are none.

    Source: Cohen, A coefficient of agreement for nominal scales (1960).
    """
    if len(first) != len(second) or not first:
        raise DataError(
            f"agreement needs the labels of the same items: {len(first)} and {len(second)} given."
        )
    size, counts = len(first), Counter(first)
    agreed = sum(a == b for a, b in zip(first, second, strict=True)) / size
    chance = sum(counts[label] * count for label, count in Counter(second).items()) / size**2
    return None if chance == 1 else (agreed - chance) / (1 - chance)


def _checked(values: ArrayLike) -> np.ndarray:
    """float64 `[n]`, not empty and finite."""
    values = np.asarray(values, float)
    if not values.size:
        raise DataError("there are no scores: nothing was evaluated.")
    if not np.isfinite(values).all():
        place = int(np.flatnonzero(~np.isfinite(values))[0])
        raise DataError(
            f"score {place} is {values[place]}: count such an item as dropped, or score it 0."
        )
    return values
