"""BLEU over a corpus and over single texts."""

import math
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

MAX_ORDER = 4
_SMALLEST = 2.2250738585072014e-308  # nltk's stand-in for a precision of zero


def ngrams(tokens: Sequence[Hashable], order: int) -> Counter[tuple[Hashable, ...]]:
    """How often each n-gram occurs."""
    return Counter(zip(*(tokens[start:] for start in range(order)), strict=False))


def bleu_counts(
    generated: Sequence[Hashable],
    reference: Sequence[Hashable],
    max_order: int = MAX_ORDER,
    *,
    least_total: int = 0,
) -> np.ndarray:
    """What BLEU needs to know of a pair; counts of pairs add up to those of a corpus.

    Args:
        generated: Tokens.
        reference: Tokens.
        max_order: Longest n-grams.
        least_total: Number of n-grams that a text too short for any counts with: 1 in nltk.

    Returns:
        int64 `[2 + 2 * max_order]`: both lengths, the clipped matches, the generated n-grams.
    """
    matches, totals = [], []
    for order in range(1, max_order + 1):
        found = ngrams(generated, order)
        matches.append((found & ngrams(reference, order)).total())
        totals.append(max(found.total(), least_total))
    return np.array([len(generated), len(reference), *matches, *totals])


def bleu(counts: np.ndarray, order: int) -> np.ndarray:
    """BLEU-1 to `order` together (cumulative BLEU) as sacrebleu has it, in percent.

    A precision of zero counts as half, a quarter, ... of a match (smoothing `exp`).

    Args:
        counts: `[..., 2 + 2 * max_order]`, from `bleu_counts`.
        order: Longest n-grams.

    Returns:
        float64 `[...]`; 0 without a match, or where texts are shorter than the n-grams.

    Source: Papineni et al. (2002); smoothing of mteval-v13a, Chen and Cherry (2014), method 3.
    """
    num_orders = (counts.shape[-1] - 2) // 2
    matches = counts[..., 2 : 2 + order]
    totals = counts[..., 2 + num_orders : 2 + num_orders + order]
    lengths, references = counts[..., 0], np.asarray(counts[..., 1], float)
    halvings = np.cumsum(matches == 0, axis=-1)
    precisions = np.where(matches > 0, matches, 0.5**halvings) / np.maximum(totals, 1)
    penalty = np.minimum(0, 1 - references / np.maximum(lengths, 1))
    score = 100 * np.exp(penalty + np.log(precisions).mean(axis=-1))
    return np.where((totals > 0).all(axis=-1) & (matches.sum(axis=-1) > 0), score, 0.0)


def weighted_bleu(counts: np.ndarray, weights: Sequence[float], *, smooth: bool = False) -> float:
    """BLEU as nltk has it, of weighted precisions, in percent.

    Args:
        counts: `[2 + 2 * max_order]`, from `bleu_counts` with a `least_total` of 1.
        weights: Of the precisions from order 1.
        smooth: nltk's method 3; otherwise a precision of zero becomes the smallest float.

    Source: nltk 3.10.4, `corpus_bleu`.
    """
    num_orders = (len(counts) - 2) // 2
    length, reference = int(counts[0]), int(counts[1])
    matches, totals = counts[2 : 2 + num_orders].tolist(), counts[2 + num_orders :].tolist()
    if not matches[0]:
        return 0.0
    logs, misses = [], 0
    for matched, total in zip(matches, totals, strict=True):
        if matched:
            logs.append(math.log(matched / total))
        elif smooth:
            misses += 1
            logs.append(math.log(1 / (2**misses * total)))
        else:
            logs.append(math.log(_SMALLEST))
    penalty = 1.0 if length > reference else math.exp(1 - reference / length)
    mean = math.fsum(weight * log for weight, log in zip(weights, logs, strict=False))
    return 100 * penalty * math.exp(mean)
