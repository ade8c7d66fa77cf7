"""What can be said of sets of answers in numbers, and how sure it is."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, combinations

import numpy as np

from megatron_chimed.data.cleaning.ngrams import fold, ngram_hashes
from megatron_chimed.observe.intervals import Z_95
from megatron_chimed.rejection.selection import SHINGLE, similarity

FEWEST_PROMPTS = 3
MOST_COMPARED = 4  # answers to a prompt: pairs grow with the square, what they tell does not


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over prompts that stand for many more."""

    mean: float
    error: float | None
    """Standard error; None where one prompt is all."""
    prompts: int
    """How many it rests on."""

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
    """sum(values) / sum(weights), its error taken from how much prompts differ.

    Answers to one prompt are alike, so the prompt counts as one observation, not each answer.

    Args:
        prompts: Of each value, `[n]`, at least one.
        values: `[n]`.
        weights: `[n]`, for example tokens where values are sums over tokens; None: 1 each.

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
    """The score to be expected of the best of n answers to a prompt, for n = 1, 2, ..., N.

    Of m scores in rising order, the i-th is the best in C(i-1, n-1) of the C(m, n) subsets of n, so
    the mean over all subsets needs none of them. Prompts weigh the same, and the same prompts stand
    behind every n: those with N answers, N being the most that any has.

    Args:
        scores: Of the answers to each prompt.

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
    """At most how far the best of n is from the policy: KL divergence in nats for each n.

    Source: Beirami et al., Theoretical guarantees on the best-of-n alignment policy (arXiv
    2401.01879), section 3: log n - (n-1)/n is an upper bound.
    """
    return np.log(n) - (n - 1) / n


def doublings(most: int) -> list[int]:
    """1, 2, 4, ... below `most`, and `most`."""
    return [*(1 << k for k in range(most.bit_length()) if 1 << k < most), most]


def distinct(answers: Iterable[Sequence[int]], size: int) -> float | None:
    """Different n-grams of tokens within answers, divided by the number of tokens.

    It falls as a set grows, by more or by longer answers: compare sets of like size only. None
    without a token.

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
    """How many different texts there are, divided by how many texts; at least one."""
    return len(set(texts)) / len(texts)


def self_similarity(answers: Iterable[Sequence[str]]) -> float | None:
    """How alike the answers to one prompt are: the mean over its pairs, then over prompts.

    Two texts are as alike as `selection.near_duplicate` has it. Of a prompt's answers the first 4
    count: draws come in no order, so that they stand for all.

    Args:
        answers: Texts of each prompt.

    Returns:
        0 (nothing in common) to 1; None where no prompt has two answers.
    """
    means = []
    for texts in answers:
        shingles = [np.unique(ngram_hashes(fold(t), SHINGLE)) for t in texts[:MOST_COMPARED]]
        pairs = [similarity(a, b) for a, b in combinations(shingles, 2)]
        if pairs:
            means.append(sum(pairs) / len(pairs))
    return sum(means) / len(means) if means else None


def spearman(x: np.ndarray, y: np.ndarray) -> float | None:
    """Correlation of ranks, ties sharing theirs; None where either is the same throughout.

    Source: Kendall, Rank Correlation Methods (1948), chapter 3.
    """
    mean = (len(x) + 1) / 2
    a, b = _ranks(x) - mean, _ranks(y) - mean
    scale = math.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale else None


def spearman_within(prompts: Sequence[int], x: np.ndarray, y: np.ndarray) -> float | None:
    """The same of leads over the means of the prompts' own values.

    Prompts whose answers are all alike in `x` or in `y`, so also those with one answer, tell
    nothing and are left out.

    Args:
        prompts: Of each pair of values, `[n]`.
        x: `[n]`.
        y: `[n]`.

    Returns:
        None where no prompt is left.
    """
    _, owner = np.unique(np.asarray(prompts), return_inverse=True)
    told = _varies(owner, x) & _varies(owner, y)
    return spearman(_leads(owner, x)[told], _leads(owner, y)[told])


def _leads(owner: np.ndarray, values: np.ndarray) -> np.ndarray:
    means = np.bincount(owner, values) / np.bincount(owner)
    return np.round(values - means[owner], 9)  # ranks would not know a rounding error from a lead


def _varies(owner: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Whether a value's owner has different ones."""
    first = np.empty(owner.max(initial=-1) + 1)
    first[owner] = values  # any of the owner's
    return np.bincount(owner, values != first[owner])[owner] > 0


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[place]
