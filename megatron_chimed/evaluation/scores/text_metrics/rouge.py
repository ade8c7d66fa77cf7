"""ROUGE that counts: a repeated word matches as often as the reference has it."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

from megatron_chimed.evaluation.scores.text_metrics.bleu import ngrams


class RougeScore(NamedTuple):
    """Shares in [0, 1]."""

    precision: float
    recall: float
    f1: float


def rouge_n(generated: Sequence[Hashable], reference: Sequence[Hashable], order: int) -> RougeScore:
    """Overlap of n-grams, clipped by how often each occurs.

    Source: Lin, ROUGE (2004), as in rouge_score 0.1.2.
    """
    found, wanted = ngrams(generated, order), ngrams(reference, order)
    return _score((found & wanted).total(), found.total(), wanted.total())


def rouge_l(generated: Sequence[Hashable], reference: Sequence[Hashable]) -> RougeScore:
    """The longest common subsequence of the whole texts."""
    return _score(lcs_length(generated, reference), len(generated), len(reference))


def lcs_length(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Length of the longest common subsequence.

    One addition of integers of `len(first)` bits per element of `second` instead of a table: 2,101
    characters against as many take about 1 ms, 5 s in pure Python's table.

    Source: Hyyro, Bit-parallel LCS-length computation revisited (2004).
    """
    places: dict[Hashable, int] = {}
    for place, token in enumerate(first):
        places[token] = places.get(token, 0) | 1 << place
    full = (1 << len(first)) - 1
    rows = full  # zeros are where the length of the common subsequence grows
    for token in second:
        matching = rows & places.get(token, 0)
        rows = ((rows + matching) | (rows - matching)) & full
    return len(first) - rows.bit_count()


def _score(matches: int, num_generated: int, num_wanted: int) -> RougeScore:
    precision, recall = matches / max(num_generated, 1), matches / max(num_wanted, 1)
    total = precision + recall
    return RougeScore(precision, recall, 2 * precision * recall / total if total else 0.0)
