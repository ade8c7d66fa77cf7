"""The selection rule: which candidates are trained on, and why each other one is rejected.

Two readings of ChiMed-GPT's rejection sampling are settings of one rule. Its figure keeps the best
answers to each prompt (`per_prompt`), as Llama 2 does (Touvron et al. 2023, section 3.2.3); its
scripts keep the best N of all answers, regardless of the prompt (`total`).
"""

import math
import statistics
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from megatron_chimed.data.cleaning.critical import critical_parts
from megatron_chimed.data.cleaning.ngrams import fold, ngram_hashes
from megatron_chimed.data.cleaning.normalize import normalize
from megatron_chimed.errors import ConfigError
from megatron_chimed.rejection.candidate import POLICY, Candidate

SELECTED = "selected"
UNFINISHED = "unfinished"
TOO_SHORT = "too_short"
TOO_LONG = "too_long"
TOO_LONG_TO_TRAIN = "too_long_to_train"
UNSCORED = "unscored"
DUPLICATE = "duplicate"
NEAR_DUPLICATE = "near_duplicate"
LOW_SCORE = "low_score"
LOW_LEAD = "low_lead"
NOT_IN_PROMPT_TOP = "not_in_prompt_top"
OVER_QUOTA = "over_quota"
NOT_IN_TOTAL_TOP = "not_in_total_top"

DECISIONS = (
    UNFINISHED,
    TOO_SHORT,
    TOO_LONG,
    TOO_LONG_TO_TRAIN,
    UNSCORED,
    DUPLICATE,
    NEAR_DUPLICATE,
    LOW_SCORE,
    LOW_LEAD,
    NOT_IN_PROMPT_TOP,
    OVER_QUOTA,
    NOT_IN_TOTAL_TOP,
    SELECTED,
)
"""In order of precedence: a candidate gets the first one that applies."""

SHINGLE = 3  # characters; answers to one prompt share words, so shorter ones say little


@dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """Which answers are kept. 0 means no limit for numbers of answers or tokens."""

    per_prompt: int = 1
    """Best answers kept for each prompt; 1 is best-of-n."""

    total: int = 0
    """Best answers kept over all prompts."""

    min_score: float | None = None
    """Minimum score of a kept answer."""

    min_lead: float | None = None
    """Minimum lead over the mean score of all answers to the prompt; 0 keeps none below it."""

    per_category: int = 0
    """Best answers kept for each category; prompts without a category form one together."""

    quotas: dict[str, int] = field(default_factory=dict)
    """Best answers kept for the categories named here, instead of `per_category`."""

    min_tokens: int = 1
    """Minimum length in tokens; an answer without visible text is always too short."""

    max_tokens: int = 0
    """Maximum length in tokens."""

    keep_unfinished: bool = False
    """Whether to keep answers that reached `candidates.max_new_tokens` without ending."""

    near_duplicate: float = 1.0
    """Similarity from which the worse of two answers to a prompt is rejected: the Jaccard index of
    their 3-grams of letters and digits. Answers that differ in a number, a unit, a side, a negation
    or a name are both kept. 1 rejects equal texts only."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for name in ("per_prompt", "total", "per_category", "min_tokens", "max_tokens"):
            _require_count(name, getattr(self, name))
        for category, limit in self.quotas.items():
            _require_count(f"quotas[{category!r}]", limit)
        for name in ("min_score", "min_lead"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ConfigError(
                    f"selection.{name} is {value}, which no score can be compared with. Set a "
                    "number, or null for no limit."
                )
        if 0 < self.max_tokens < self.min_tokens:
            raise ConfigError(
                f"selection.max_tokens is {self.max_tokens}, below selection.min_tokens "
                f"{self.min_tokens}: no answer would be left. Raise it, or set 0 for no limit."
            )
        if not 0 < self.near_duplicate <= 1:
            raise ConfigError(
                f"selection.near_duplicate is {self.near_duplicate}: set a similarity above 0 and "
                "at most 1, where 1 rejects equal texts only. Try 0.8."
            )


def _require_count(name: str, value: int) -> None:
    if value < 0:
        raise ConfigError(f"selection.{name} is {value}: set 0 or more, 0 for no limit.")


def require_categories(config: SelectionConfig, categories: Iterable[str]) -> None:
    """Refuses quotas without effect.

    Args:
        config: Has the quotas.
        categories: The categories of the prompts.

    Raises:
        ConfigError: A quota names a category that no prompt has.
    """
    known = sorted(set(categories))
    unknown = sorted(set(config.quotas) - set(known))
    if unknown:
        raise ConfigError(
            f"selection.quotas names {', '.join(map(repr, unknown))}, but the prompts' categories "
            f"are {', '.join(map(repr, known[:10]))}{', ...' if len(known) > 10 else ''}. Correct "
            "the name, or set prompts.category_key to the key of the category."
        )


def select(
    candidates: Sequence[Candidate],
    config: SelectionConfig,
    *,
    untrainable: Container[int] = frozenset(),
) -> list[Candidate]:
    """Makes a decision on every candidate.

    Filters come first, so that a rejected candidate takes no place in a ranking. Then the best of
    each prompt are ranked within their category, and the best of each category overall. Ties are
    ranked by prompt, then source (the policy's first) and number: the result is the same on every
    machine and does not depend on the order of `candidates`. Time is n log n; with
    `near_duplicate` below 1 also quadratic in the answers to one prompt.

    Args:
        candidates: Of all prompts, scored; those without a score are rejected as `unscored`.
        config: The limits.
        untrainable: Indices of candidates that do not fit a training sample; their scores count
            in the mean of their prompt.

    Returns:
        The candidates in the order given, each with one of `DECISIONS`.
    """
    decisions: dict[int, str] = {}
    ranked = sorted(range(len(candidates)), key=lambda index: _rank(candidates[index]))
    prompts: dict[int, list[int]] = {}  # indices of each prompt's candidates, best first
    for index in ranked:
        prompts.setdefault(candidates[index].prompt, []).append(index)
    for indices in prompts.values():
        fits = [index not in untrainable for index in indices]
        reasons = _decide_prompt([candidates[index] for index in indices], fits, config)
        decisions.update(zip(indices, reasons, strict=True))
    left = [index for index in ranked if decisions[index] == SELECTED]
    counts: Counter[str] = Counter()
    total = 0
    for index in left:
        category = candidates[index].category
        counts[category] += 1
        limit = config.quotas.get(category, config.per_category)
        if _is_over(counts[category], limit):
            decisions[index] = OVER_QUOTA
            continue
        total += 1
        if _is_over(total, config.total):
            decisions[index] = NOT_IN_TOTAL_TOP
    return [replace(item, decision=decisions[index]) for index, item in enumerate(candidates)]


def count_decisions(candidates: Iterable[Candidate]) -> dict[str, int]:
    """Number of candidates with each decision, in the order of `DECISIONS`, without zeros."""
    counts = Counter(item.decision for item in candidates)
    return {name: counts[name] for name in ("", *DECISIONS) if counts[name]}


def describe_decisions(counts: Mapping[str, int]) -> str:
    """The counts of `count_decisions` in one line."""
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def _rank(item: Candidate) -> tuple:
    """Sort key: best first."""
    score = -math.inf if item.score is None else item.score
    assert not math.isnan(score), f"the score of {item.prompt_id} is NaN"
    return -score, item.prompt, item.source != POLICY, item.source, item.number


def _is_over(count: int, limit: int) -> bool:
    return 0 < limit < count


def _decide_prompt(
    ranked: Sequence[Candidate], fits: Sequence[bool], config: SelectionConfig
) -> Iterator[str]:
    """The decisions on a prompt's candidates, best first, regardless of other prompts."""
    scores = [item.score for item in ranked if item.score is not None]
    # statistics.mean is exact: equal scores have a lead of 0, not of -1e-17.
    mean = statistics.mean(scores) if scores and config.min_lead is not None else 0.0
    texts = _SeenTexts(config.near_duplicate)
    kept = 0
    for item, fit in zip(ranked, fits, strict=True):
        reason = _unfit(item, fit, config)
        reason = reason or texts.find_duplicate(item.text) or _low(item, config, mean)
        if reason is None:
            kept += 1
            reason = NOT_IN_PROMPT_TOP if _is_over(kept, config.per_prompt) else SELECTED
        yield reason


def _unfit(item: Candidate, is_trainable: bool, config: SelectionConfig) -> str | None:
    if item.finish_reason == "length" and not config.keep_unfinished:
        return UNFINISHED
    if item.num_tokens < config.min_tokens or not item.text.strip():
        return TOO_SHORT
    if _is_over(item.num_tokens, config.max_tokens):
        return TOO_LONG
    if not is_trainable:
        return TOO_LONG_TO_TRAIN
    return UNSCORED if item.score is None else None


def _low(item: Candidate, config: SelectionConfig, mean: float) -> str | None:
    assert item.score is not None, "unscored candidates were rejected before"
    if config.min_score is not None and item.score < config.min_score:
        return LOW_SCORE
    if config.min_lead is not None and item.score - mean < config.min_lead:
        return LOW_LEAD
    return None


class _SeenTexts:
    """The answers to one prompt seen so far, best first."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._texts: set[str] = set()
        # Of answers that are no duplicates, by their critical parts.
        self._shingles: dict[str, list[np.ndarray]] = {}

    def find_duplicate(self, text: str) -> str | None:
        """DUPLICATE or NEAR_DUPLICATE of an earlier answer, or None."""
        text, _ = normalize(text)
        if text in self._texts:
            return DUPLICATE
        self._texts.add(text)
        if self._threshold == 1:
            return None
        shingles = np.unique(ngram_hashes(fold(text), SHINGLE))
        others = self._shingles.setdefault(critical_parts(text), [])
        if any(similarity(shingles, other) >= self._threshold for other in others):
            return NEAR_DUPLICATE
        others.append(shingles)
        return None


def similarity(first: np.ndarray, second: np.ndarray) -> float:
    """Jaccard index of two sets given as sorted unique arrays; 0 for two empty ones."""
    common = len(np.intersect1d(first, second, assume_unique=True))
    return common / max(1, len(first) + len(second) - common)
