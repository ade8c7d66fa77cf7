"""Test questions in training data: found, reported, removed or refused.

An item is a question of a test file with its choices. It is found in an example of which a passage
covers most of the question, or of question and choices, in any order and with any punctuation and
numbering; `item_index.py` says how.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from megatron_chimed.data.cleaning.config import CleaningConfig
from megatron_chimed.data.cleaning.exam_items import ExamItem, read_exams
from megatron_chimed.data.cleaning.item_index import MIN_COVERED, ItemIndex
from megatron_chimed.data.cleaning.report import FoundItem
from megatron_chimed.errors import DataError

EXAMPLE_CHARACTERS = 60
MAX_EXAMPLES = 5
MAX_MATCHES = 1000


@dataclass(frozen=True, kw_only=True)
class Match:
    """A test question that was found."""

    line: int
    """Its line in the test file."""

    question: str
    """How it starts."""

    score: float
    """Largest share of it that an example covers."""

    kept: int
    """Examples that hold it and stay in the data."""

    removed: int
    """Examples that held it and were removed."""


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """How much of one test file the data contain."""

    file: str
    """Path of the test file."""

    items: int
    """Questions in it."""

    too_short: int
    """Questions with too little text to search for, or with none of their own."""

    found: int
    """Questions that were found."""

    removed: int
    """Those of them that were only in examples that were removed."""

    examples: tuple[str, ...]
    """The first few found questions, those still in the data first."""

    matches: tuple[Match, ...]
    """All found questions, at most `MAX_MATCHES`."""

    @property
    def share(self) -> float:
        """Questions still in the data as a share of those searched for."""
        return (self.found - self.removed) / max(1, self.items - self.too_short)


class Decontaminator:
    """Searches texts for test questions.

    Args:
        config: Test files and thresholds.

    Raises:
        ConfigError: A name matches no file.
        DataError: A test file is malformed, or has no question that can be searched for.
    """

    def __init__(self, config: CleaningConfig) -> None:
        self._overlap = config.ngram_overlap
        self._max_contaminated = config.max_contaminated
        self.files: list[str] = []
        self._items: list[ExamItem] = []
        file_of: list[int] = []
        for name, items in read_exams(config.decontaminate, config.encoding):
            file_of += [len(self.files)] * len(items)
            self.files.append(name)
            self._items += items
        self._file_of = np.array(file_of, np.int64)
        self._index = ItemIndex([item.segments for item in self._items], config.ngram_size)
        self._check_files(config.ngram_size)

    def find(self, text: str) -> list[int]:
        """Numbers of the items that a text contains."""
        return sorted(self.find_all([text])[0])

    def find_all(self, texts: Sequence[str]) -> list[dict[int, float]]:
        """Numbers of the items that each text contains, with the share that it covers."""
        return self._index.find(texts, self._overlap)

    def item(self, number: int) -> str:
        """The start of an item, for reports."""
        return " ".join(self._items[number].question.split())[:EXAMPLE_CHARACTERS]

    def overlaps(self, found: Iterable[FoundItem]) -> tuple[Overlap, ...]:
        """The report per test file, from all found items."""
        found = sorted(found, key=lambda each: each.item)
        reports = []
        for number, name in enumerate(self.files):
            here = np.flatnonzero(self._file_of == number)
            items = [each for each in found if self._file_of[each.item] == number]
            shown = sorted(items, key=lambda each: not each.kept)[:MAX_EXAMPLES]
            reports.append(
                Overlap(
                    file=name,
                    items=len(here),
                    too_short=int(self._index.is_short[here].sum()),
                    found=len(items),
                    removed=sum(not each.kept for each in items),
                    examples=tuple(self.item(each.item) for each in shown),
                    matches=tuple(map(self._match, items[:MAX_MATCHES])),
                )
            )
        return tuple(reports)

    def check(self, found: Iterable[FoundItem]) -> None:
        """Enforces `max_contaminated`.

        Raises:
            DataError: The data contain more of a test file than allowed.
        """
        over = [item for item in self.overlaps(found) if item.share > self._max_contaminated]
        if over:
            listed = "; ".join(
                f"{item.found - item.removed} of {item.items} questions of {item.file}, such as "
                f"{item.examples[0]!r}"
                for item in over
            )
            raise DataError(
                f"the data hold {listed}: more than --max-contaminated {self._max_contaminated:g}, "
                "so scores on them would be meaningless. Add --remove-contaminated, or remove the "
                "source."
            )

    def _match(self, found: FoundItem) -> Match:
        return Match(
            line=self._items[found.item].line,
            question=self.item(found.item),
            score=round(found.score, 3),
            kept=found.kept,
            removed=found.removed,
        )

    def _check_files(self, ngram_size: int) -> None:
        """Refuses a file none of whose questions can be searched for."""
        for number, name in enumerate(self.files):
            here = np.flatnonzero(self._file_of == number)
            if self._index.is_short[here].all():
                raise DataError(
                    f"test file {name}: none of its {len(here)} questions can be searched for, "
                    f"such as {self.item(here[0])!r} on line {self._items[here[0]].line}. One "
                    f"needs at least {MIN_COVERED} characters, words and numbers, choices "
                    f"included, and --ngram-size {ngram_size} of them in a row that few other "
                    "questions share. Does the file have questions under a key such as 'question' "
                    "and choices under 'options'?"
                )
