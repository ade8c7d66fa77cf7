"""ROUGE of the packages `rouge` and `rouge-chinese`, which treat n-grams as sets.

A text that repeats one right word for ever has a precision of 1 here. These numbers exist to be
compared with published ones; `rouge.py` has those to judge by. Ours need no recursion, and an empty
text scores 0, where the packages raise.
"""

import itertools
import re
from collections.abc import Sequence

import numpy as np

from megatron_chimed.evaluation.scores.text_metrics.rouge import lcs_length

# How rouge-chinese divides sentences: each rule puts a line break between its two groups.
_SENTENCE_ENDS = (
    re.compile(r"([。！？?])([^”’])"),
    re.compile(r"(\.{6})([^”’])"),
    re.compile(r"(…{2})([^”’])"),
    re.compile(r"([。！？?][”’])([^，。！？?])"),
)


def dot_sentences(text: str) -> list[list[str]]:
    """Words of the sentences of `rouge`, which end at each full stop, so also within 38.5."""
    return [_words(sentence) for sentence in text.split(".") if sentence]


def chinese_sentences(text: str) -> list[list[str]]:
    """Words of the sentences of `rouge-chinese`."""
    for pattern in _SENTENCE_ENDS:
        text = pattern.sub("\\1\n\\2", text)
    return [_words(sentence) for sentence in text.rstrip().split("\n") if sentence]


def set_rouge_n(
    generated: Sequence[Sequence[str]], reference: Sequence[Sequence[str]], order: int
) -> float:
    """F1 of the different n-grams of two texts, given as words of sentences.

    Source: rouge 1.0.1 and rouge-chinese 1.0.3.
    """
    found, wanted = (
        set(zip(*(words[start:] for start in range(order)), strict=False))
        for words in (_joined(generated), _joined(reference))
    )
    return _f1(len(found & wanted), len(found), len(wanted))


def set_rouge_l(generated: Sequence[Sequence[str]], reference: Sequence[Sequence[str]]) -> float:
    """F1 of the different words in the common subsequences of any two sentences (`rouge`)."""
    common: set[str] = set()
    for wanted in reference:
        for found in generated:
            common |= _words_in_common(wanted, found)
    return _f1(len(common), len(set(_joined(generated))), len(set(_joined(reference))))


def counted_rouge_l(
    generated: Sequence[Sequence[str]], reference: Sequence[Sequence[str]]
) -> float:
    """F1 of the common subsequence of the whole texts (`rouge-chinese`)."""
    found, wanted = _joined(generated), _joined(reference)
    return _f1(lcs_length(found, wanted), len(found), len(wanted))


def _words(sentence: str) -> list[str]:
    # As both packages do: a sentence of spaces alone has one word, which is empty.
    return " ".join(sentence.split()).split(" ")


def _joined(sentences: Sequence[Sequence[str]]) -> list[str]:
    return list(itertools.chain.from_iterable(sentences))


def _f1(matches: int, num_generated: int, num_wanted: int) -> float:
    precision = matches / num_generated if num_generated else 0.0
    recall = matches / num_wanted if num_wanted else 0.0
    return 2 * precision * recall / (precision + recall + 1e-8)


def _words_in_common(wanted: Sequence[str], found: Sequence[str]) -> set[str]:
    """Words of the longest common subsequence that `rouge` picks among those of equal length."""
    ids = {word: place for place, word in enumerate(dict.fromkeys([*wanted, *found]))}
    columns = np.array([ids[word] for word in found], np.int32)
    table = np.zeros((len(wanted) + 1, len(found) + 1), np.int32)
    for row, word in enumerate(wanted, 1):
        extended = table[row - 1, :-1] + (columns == ids[word])
        np.maximum.accumulate(np.maximum(table[row - 1, 1:], extended), out=table[row, 1:])
    words, row, column = set(), len(wanted), len(found)
    while row and column:
        if wanted[row - 1] == found[column - 1]:
            words.add(wanted[row - 1])
            row, column = row - 1, column - 1
        elif table[row - 1, column] > table[row, column - 1]:
            row -= 1
        else:
            column -= 1
    return words
