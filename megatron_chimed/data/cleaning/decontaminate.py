"""Test questions in training data: found by shared character n-grams, reported, removed or refused.

An item is a question of a test file, without its choices if it is long enough to be distinctive.
It is found in an example that holds most of its n-grams, anywhere, so a copied question is found
with any choices, in any format and with any punctuation. N-grams shared by many items belong to the
wording of the test rather than to an item, and do not count.
"""

import functools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_chimed.data.cleaning.config import CleaningConfig
from megatron_chimed.data.cleaning.ngrams import fold, ngram_hashes
from megatron_chimed.data.formats.example import example_text
from megatron_chimed.data.formats.format import Format, ReadOptions, Row
from megatron_chimed.data.formats.row import RowError
from megatron_chimed.data.reading import InputFile, expand_inputs, format_of, iter_blocks, rows_of
from megatron_chimed.errors import DataError

QUESTION_KEYS = ("question", "Question", "text")
LETTERS = "ABCDEFGH"
MAX_SHARING = 8  # items that may share an n-gram; variants of one question in several sets do
FILTER_BITS = 22  # a filter of 4 MiB answers most lookups
EXAMPLE_CHARACTERS = 60
MAX_EXAMPLES = 5


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """How much of one test file the data contain."""

    file: str
    """Path of the test file."""

    items: int
    """Questions in it."""

    too_short: int
    """Questions with too few characters to search for, or without n-grams of their own."""

    found: int
    """Questions that were found in the data."""

    examples: tuple[str, ...]
    """The first few of them."""

    @property
    def share(self) -> float:
        """Found questions as a share of those searched for."""
        return self.found / max(1, self.items - self.too_short)


class Decontaminator:
    """An index of the n-grams of test questions.

    Args:
        config: Test files and thresholds.

    Raises:
        ConfigError: A name matches no file.
        DataError: A test file is malformed or has no question.
    """

    def __init__(self, config: CleaningConfig) -> None:
        self._n = config.ngram_size
        self._overlap = config.ngram_overlap
        self._max_contaminated = config.max_contaminated
        self.files: list[str] = []
        self._texts: list[str] = []
        file_of: list[int] = []
        for name, texts in read_items(config.decontaminate, self._n):
            file_of += [len(self.files)] * len(texts)
            self.files.append(name)
            self._texts += texts
        self._file_of = np.array(file_of, np.int64)
        self._build()

    def find(self, text: str) -> list[int]:
        """Numbers of the items that a text contains."""
        hashes = ngram_hashes(fold(text), self._n)
        hashes = np.unique(hashes[self._filter[hashes >> np.uint64(64 - FILTER_BITS)]])
        first = np.searchsorted(self._keys, hashes, "left").tolist()
        last = np.searchsorted(self._keys, hashes, "right").tolist()
        hits = Counter(
            item for a, b in zip(first, last, strict=True) for item in self._items[a:b].tolist()
        )
        return sorted(i for i, n in hits.items() if n >= self._overlap * self._sizes[i])

    def item(self, number: int) -> str:
        """The start of an item, for reports."""
        return " ".join(self._texts[number].split())[:EXAMPLE_CHARACTERS]

    def overlaps(self, found: Iterable[int]) -> tuple[Overlap, ...]:
        """The report per test file, from the numbers of all found items."""
        found = sorted(set(found))
        reports = []
        for number, name in enumerate(self.files):
            here = np.flatnonzero(self._file_of == number)
            items = [item for item in found if self._file_of[item] == number]
            reports.append(
                Overlap(
                    file=name,
                    items=len(here),
                    too_short=int((self._sizes[here] == 0).sum()),
                    found=len(items),
                    examples=tuple(self.item(item) for item in items[:MAX_EXAMPLES]),
                )
            )
        return tuple(reports)

    def check(self, found: Iterable[int]) -> None:
        """Enforces `max_contaminated`.

        Raises:
            DataError: The data contain more of a test file than allowed.
        """
        over = [item for item in self.overlaps(found) if item.share > self._max_contaminated]
        if over:
            listed = "; ".join(
                f"{item.found} of {item.items} questions of {item.file}, such as "
                f"{item.examples[0]!r}"
                for item in over
            )
            raise DataError(
                f"the data hold {listed}: more than --max-contaminated {self._max_contaminated:g}, "
                "so scores on them would be meaningless. Add --remove-contaminated, or remove the "
                "source."
            )

    def _build(self) -> None:
        """Sorted n-grams with their items, the number of n-grams of each item, and the filter."""
        grams = [_distinct_ngrams(text, self._n) for text in self._texts]
        keys = np.concatenate([np.empty(0, np.uint64), *grams])
        items = np.repeat(np.arange(len(grams)), [len(hashes) for hashes in grams])
        _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
        own = counts[inverse] <= MAX_SHARING
        keys, items = keys[own], items[own]
        order = np.argsort(keys, kind="stable")
        self._keys, self._items = keys[order], items[order]
        self._sizes = np.bincount(items, minlength=len(grams))
        self._filter = np.zeros(1 << FILTER_BITS, np.bool_)
        self._filter[self._keys >> np.uint64(64 - FILTER_BITS)] = True


def _distinct_ngrams(text: str, n: int) -> np.ndarray:
    folded = fold(text)
    return np.unique(ngram_hashes(folded, n)) if len(folded) >= n else np.empty(0, np.uint64)


def read_items(
    names: Sequence[str | os.PathLike], ngram_size: int
) -> Iterator[tuple[str, list[str]]]:
    """The test files with the texts of their questions, without answers.

    Args:
        names: Files, folders and patterns.
        ngram_size: A question with fewer characters is combined with its choices.

    Raises:
        ConfigError: A name matches no file.
        DataError: A row is malformed, or a file has none.
    """
    for entry in expand_inputs(names, text_key=QUESTION_KEYS[0]):
        items = []
        for block in iter_blocks([entry]):
            for line, _, row in rows_of(block, entry):
                try:
                    items += _items_of(row, entry, ngram_size)
                except RowError as error:
                    raise DataError(
                        f"test file {entry.path}:{line}: {error}. Fix the row, or remove the file."
                    ) from None
        if not items:
            raise DataError(f"test file {entry.path} has no question. Is it the right file?")
        yield str(entry.path), items


def _items_of(row: Row | RowError, entry: InputFile, ngram_size: int) -> list[str]:
    if isinstance(row, RowError):
        raise row
    if isinstance(row, dict):
        for question in map(row.get, QUESTION_KEYS):
            if isinstance(question, str):
                is_long = len(fold(question)) >= ngram_size
                return [question if is_long else f"{question}\n{_choices(row)}"]
    options = ReadOptions(folder=entry.path.parent)
    return [example_text(example) for example in _format(entry).examples(row, options)]


def _choices(row: dict[str, Any]) -> str:
    """The choices of a row, formatted as training data usually are."""
    listed = row.get("Options", row.get("options", row.get("choice", row)))
    if isinstance(listed, str):
        return listed
    if isinstance(listed, list):
        listed = dict(zip(LETTERS, listed, strict=False))
    return "\n".join(f"{letter}.{listed[letter]}" for letter in LETTERS if letter in listed)


@functools.lru_cache(maxsize=1)
def _format(entry: InputFile) -> Format:
    return format_of(entry)
