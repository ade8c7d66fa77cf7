"""Metrics of sets of answers, with their standard errors."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, combinations

import numpy as np

from megatron_chimed.data.cleaning.ngrams import fold, ngram_hashes
from megatron_chimed.observe.intervals import Z_95
from megatron_chimed.rejection.selection_rules import SHINGLE, similarity

FEWEST_PROMPTS = 3
MOST_COMPARED = 4  # answers to a prompt: the number of pairs grows with the square


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over a sample of prompts."""

    mean: float
    error: float | None
    """Standard error; None for a single prompt."""
    prompts: int
    """Number of prompts."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % confidence interval by Student's t; None for fewer than 3 prompts.

        Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5; with 2 degrees of
        freedom 3 % too narrow, with 5 a seventh of 1 %.
        """
        if self.error is None or self.prompts < FEWEST_PROMPTS:
            return None
        z, n = Z_95, self.prompts - 1
        t = z + (z**3 + z) / (4 * n) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        t += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
        return self.mean - t * self.error, self.mean + t * self.error


def mean_over_prompts(
    prompts: Sequence[int], values: np.ndarray, weights: np.ndarray | None = None
) -> Estimate:
    """sum(values) / sum(weights), with an error from the variation between prompts.

    Answers to one prompt are alike, so each prompt, not each answer, counts as one observation.

    Args:
        prompts: Prompt of each value, `[n]`, at least one.
        values: `[n]`.
        weights: `[n]`, for example tokens if values are sums over tokens; None: 1 each.

    Source: Cochran, Sampling Techniques (3rd edition, 1977), section 2.11, the ratio estimate.
    """
    _, owner = np.unique(np.asarray(prompts), return_inverse=True)
    sums = np.bincount(owner, np.asarray(values, float))
    sizes = np.bincount(owner, None if weights is None else np.asarray(weights, float))
    mean, count = sums.sum() / sizes.sum(), len(sums)
    if count == 1:
        return Estimate(mean=float(mean), error=None, prompts=1)
    spread = ((sums - mean * sizes) ** 2).sum() * count / (count - 1)
    return Estimate(mean=float(mean), error=float(math.sqrt(spread) / sizes.sum()), prompts=count)


def best_of_n(scores: Sequence[np.ndarray]) -> np.ndarray:
    """The expected score of the best of n answers to a prompt, for n = 1, 2, ..., N.

    Of m scores in ascending order, the i-th is the best in C(i-1, n-1) of the C(m, n) subsets of n,
    so the mean over all subsets is a weighted sum. Prompts weigh the same, and every n uses the
    same prompts: those with N answers, the most that any prompt has.

    Args:
        scores: Scores of the answers to each prompt.

    Returns:
        `[N]`; empty without scores.

    Source: Hilton and Gao, Measuring Goodhart's law (OpenAI, 2022), the estimator of best-of-n.
    """
    most = max(map(len, scores), default=0)
    if most == 0:
        return np.empty(0)
    ordered = np.sort([found for found in scores if len(found) == most], axis=1)
    rank = np.arange(1, most + 1)
    weight, curve = np.full(most, 1 / most), np.empty(most)  # of each rank, for n = 1
    for n in range(1, most + 1):
        curve[n - 1] = (ordered @ weight).mean()
        if n < most:
            weight = weight * (rank - n) / n * (n + 1) / (most - n)
    return curve


def best_of_n_kl(n: np.ndarray) -> np.ndarray:
    """Upper bound of the KL divergence of best-of-n from the policy, in nats, for each n.

    Source: Beirami et al., Theoretical guarantees on the best-of-n alignment policy (arXiv
    2401.01879), section 3: log n - (n-1)/n is an upper bound.
    """
    return np.log(n) - (n - 1) / n


def doublings(most: int) -> list[int]:
    """1, 2, 4, ... below `most`, and `most`."""
    return [*(1 << k for k in range(most.bit_length()) if 1 << k < most), most]


def distinct(answers: Iterable[Sequence[int]], size: int) -> float | None:
    """Different n-grams of tokens within answers, divided by the number of tokens.

    It falls as a set grows, by more or longer answers: compare sets of similar size only. None
    without tokens.

    Source: Li et al., A Diversity-Promoting Objective Function for Neural Conversation Models
    (NAACL 2016, arXiv 1510.03055): distinct-1 and distinct-2.
    """
    kept = [answer for answer in answers if len(answer)]
    if not kept:
        return None
    lengths = np.array([len(answer) for answer in kept])
    tokens = np.fromiter(chain.from_iterable(kept), np.int64, count=lengths.sum())
    left = np.repeat(lengths.cumsum(), lengths) - np.arange(len(tokens))  # to the answer's end
    base = int(tokens.max()) + 1
    codes = tokens
    for shift in range(1, size):
        codes = codes[:-1] * base + tokens[shift:]
    ordered = np.sort(codes[left[: len(codes)] >= size])  # on many, faster than np.unique
    return (np.count_nonzero(np.diff(ordered)) + (len(ordered) > 0)) / len(tokens)


def unique_share(texts: Sequence[str]) -> float:
    """Number of different texts divided by the number of texts, which is at least one."""
    return len(set(texts)) / len(texts)


def self_similarity(answers: Iterable[Sequence[str]]) -> float | None:
    """Similarity of the answers to a prompt: the mean over pairs, then over prompts.

    Pairs are compared as for `selection.near_duplicate`. Only the first 4 answers to a prompt
    count: draws are unordered, so they represent all.

    Args:
        answers: The texts of each prompt.

    Returns:
        0 (nothing in common) to 1; None if no prompt has two answers.
    """
    means = []
    for texts in answers:
        shingles = [np.unique(ngram_hashes(fold(t), SHINGLE)) for t in texts[:MOST_COMPARED]]
        pairs = [similarity(a, b) for a, b in combinations(shingles, 2)]
        if pairs:
            means.append(sum(pairs) / len(pairs))
    return sum(means) / len(means) if means else None


def spearman(x: np.ndarray, y: np.ndarray) -> float | None:
    """Rank correlation with tied ranks averaged; None if either is constant.

    Source: Kendall, Rank Correlation Methods (1948), chapter 3.
    """
    mean = (len(x) + 1) / 2
    a, b = _ranks(x) - mean, _ranks(y) - mean
    scale = math.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale else None


def spearman_within(prompts: Sequence[int], x: np.ndarray, y: np.ndarray) -> float | None:
    """Rank correlation of the differences from each prompt's mean.

    Prompts with constant `x` or `y`, and so those with one answer, are left out.

    Args:
        prompts: Prompt of each pair of values, `[n]`.
        x: `[n]`.
        y: `[n]`.

    Returns:
        None if no prompt is left.
    """
    _, owner = np.unique(np.asarray(prompts), return_inverse=True)
    used = _varies(owner, x) & _varies(owner, y)
    return spearman(_leads(owner, x)[used], _leads(owner, y)[used])


def _leads(owner: np.ndarray, values: np.ndarray) -> np.ndarray:
    means = np.bincount(owner, values) / np.bincount(owner)
    return np.round(values - means[owner], 9)  # ranks would turn rounding errors into differences


def _varies(owner: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Whether the prompt of a value has different values."""
    first = np.empty(owner.max(initial=-1) + 1)
    first[owner] = values  # any of the prompt's
    return np.bincount(owner, values != first[owner])[owner] > 0


def _ranks(values: np.ndarray) -> np.ndarray:
    _, rank, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[rank]
