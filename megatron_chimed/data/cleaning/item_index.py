"""An inverted index of test items: finds the passages of texts that hold one.

First, cheaply and for many texts at once: which n-grams are those of an item, and where do enough
of one item's stand close together? Then, for these few passages: what share of the item do they
cover? The second step makes no difference between orders of choices or clauses, and an edit costs
the units around it rather than every long n-gram across it.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from megatron_chimed.data.cleaning.ngrams import ngram_hashes, units

MIN_FILTER_BITS = 22  # a filter of 4 MiB answers most lookups
SLOTS_PER_NGRAM = 16
MIN_SHARING = 8  # items that may share an n-gram; variants of one question in several sets do
SHARING = 0.001  # or this share of the items
COVER = 3  # units that must be equal in a row to be covered; all of a shorter question or choice
MIN_COVERED = 11  # own units; fewer meet by accident
ALONE_MISSING = 2 / 3  # of what question and choices together may lack, a question alone may lack
HIT_SHARE = 0.25  # of an item's n-grams, within the limits below, make a passage worth a look
MIN_HITS, MAX_HITS = 2, 10
SLACK, CHOICE_SLACK = 10, 4  # units that a passage may have more than the item, per choice too
DENSE_SLACK, DENSE_CHOICE_SLACK = 4, 2  # likewise where the covering units must stand


class ItemIndex:
    """An index of items, each of several segments: the question, then its choices.

    Only an item's own units count, those in n-grams that few items share: the others belong to the
    wording of the test.

    Args:
        items: The segments of each item.
        n: Units of an n-gram.
    """

    def __init__(self, items: Sequence[Sequence[str]], n: int) -> None:
        self._n = n
        counts = [len(item) for item in items]
        self._codes, bounds = _joined([segment for item in items for segment in item])
        self._segments = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
        self._questions = np.array([0, *counts]).cumsum()  # their segments
        self._bounds = bounds[self._questions]
        self._items = np.repeat(np.arange(len(items)), np.diff(self._bounds))
        self._max_sharing = max(MIN_SHARING, int(SHARING * len(items)))
        first: dict[tuple[str, ...], int] = {}  # copies of an item do not share its n-grams
        self._first = np.array([first.setdefault(tuple(item), n) for n, item in enumerate(items)])
        self._is_own = self._find_own(np.diff(bounds))
        self._grams = _grams(self._codes, self._segments)
        self._index()
        own = np.bincount(self._items[self._is_own], minlength=len(items))
        hits = np.bincount(self._owners, minlength=len(items))
        self.is_short = (hits < MIN_HITS) | (own < MIN_COVERED)
        self._needed = np.clip(np.ceil(HIT_SHARE * hits), MIN_HITS, MAX_HITS).astype(np.int64)
        self._window = np.diff(self._bounds) + CHOICE_SLACK * (np.array(counts) - 1) + SLACK

    def find(self, texts: Sequence[str], overlap: float) -> list[dict[int, float]]:
        """The items that each text holds, by number, with the share that is covered.

        Args:
            texts: Any number: together they take less time than one by one.
            overlap: Share of an item, or of its question, that must be covered.
        """
        if not texts:
            return []
        codes, bounds = _joined(texts)
        found: list[dict[int, float]] = [{} for _ in texts]
        for text, item, start, end in self._passages(codes, bounds):
            score = self._score(item, codes[start:end], overlap)
            if score > found[text].get(item, 0.0):
                found[text][item] = score
        return found

    def _find_own(self, sizes: np.ndarray) -> np.ndarray:
        """Whether a unit is the item's own: bool `[units]`."""
        is_own = sizes[self._segments] < COVER
        hashes, starts = self._ngrams(COVER)
        _mark(is_own, starts[~self._is_shared(hashes, self._items[starts])], COVER)
        return is_own

    def _ngrams(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Hashes of the n-grams within segments, and where they start."""
        last = max(0, len(self._codes) - n + 1)
        starts = np.flatnonzero(self._segments[:last] == self._segments[n - 1 :])
        return ngram_hashes(self._codes, n)[starts], starts

    def _is_shared(self, hashes: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Whether more items hold an n-gram than may share it."""
        keys, _ = _distinct(hashes, self._first[items])
        keys, sharing = np.unique(keys, return_counts=True)
        return np.isin(hashes, keys[sharing > self._max_sharing])

    def _index(self) -> None:
        """Sorted n-grams with the items that own them, and the filter."""
        hashes, starts = self._ngrams(self._n)
        items = self._items[starts]
        is_kept = ~self._is_shared(hashes, items)
        self._keys, owners = _distinct(hashes[is_kept], items[is_kept])
        self._owners = owners.astype(np.int32)
        bits = max(MIN_FILTER_BITS, (SLOTS_PER_NGRAM * len(self._keys)).bit_length())
        self._shift = np.uint64(64 - bits)
        self._filter = np.zeros(1 << bits, np.bool_)
        self._filter[self._keys >> self._shift] = True

    def _passages(
        self, codes: np.ndarray, bounds: np.ndarray
    ) -> Iterator[tuple[int, int, int, int]]:
        """Passages with many n-grams of one item: their text, item, start and end."""
        items, places = self._hits(codes)
        texts = np.searchsorted(bounds, places, "right") - 1
        # From each hit to the one that completes the number needed.
        last = np.arange(len(items)) + self._needed[items] - 1
        first = np.flatnonzero(last < len(items))
        last = last[first]
        is_dense = (items[last] == items[first]) & (texts[last] == texts[first])
        is_dense &= places[last] - places[first] <= self._window[items[first]]
        first = first[is_dense]
        seen = (-1, -1, -1)
        rows = zip(
            texts[first].tolist(), items[first].tolist(), places[first].tolist(), strict=True
        )
        for text, item, place in rows:
            if seen[:2] == (text, item) and place <= seen[2]:
                continue
            half = int(self._window[item]) // 2
            seen = text, item, place + half
            begin, end = bounds[text : text + 2].tolist()
            yield text, item, max(begin, place - half), min(end, place + 3 * half)

    def _hits(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Every n-gram of an item in the texts, sorted: items, and places in the texts."""
        hashes = ngram_hashes(codes, self._n)
        places = np.flatnonzero(self._filter[hashes >> self._shift])
        hashes = hashes[places]
        first = np.searchsorted(self._keys, hashes, "left")
        counts = np.searchsorted(self._keys, hashes, "right") - first
        shift = np.repeat(first - (counts.cumsum() - counts), counts)
        items = self._owners[shift + np.arange(len(shift))]
        order = np.argsort(items, kind="stable")
        return items[order], np.repeat(places, counts)[order]

    def _score(self, item: int, passage: np.ndarray, overlap: float) -> float:
        """The share of an item that a passage covers, of the question or of all; 0 if too small."""
        begin, end = self._bounds[item : item + 2]
        segments = self._segments[begin:end]
        grams = [_between(gram, begin, end) for gram in self._grams]
        covered = np.zeros(end - begin, np.bool_)
        for n, starts, hashes in grams:
            _mark(covered, starts[_is_in(hashes, ngram_hashes(passage, n))], n)
        score = 0.0
        is_question = segments == self._questions[item]
        for part, needed in (
            (is_question, 1 - ALONE_MISSING * (1 - overlap)),
            (np.ones(end - begin, np.bool_), overlap),
        ):
            own = part & self._is_own[begin:end]
            least = max(MIN_COVERED, needed * own.sum())
            count = (covered & own).sum()
            if count >= least:
                # Text that repeats itself covers many units of choices that are alike: what counts
                # is how many of its own units do that, close together.
                width = part.sum() + DENSE_CHOICE_SLACK * len(np.unique(segments[part]))
                count = min(count, _densest(grams, part, passage, width + DENSE_SLACK))
            if count >= least:
                score = max(score, float(count / own.sum()))
        return score


Gram = tuple[int, np.ndarray, np.ndarray]
"""A length, and where the n-grams of that length start, in order, with their hashes."""


def _grams(codes: np.ndarray, segments: np.ndarray) -> list[Gram]:
    """The n-grams by which items are covered: of COVER units, and shorter segments as a whole."""
    first = np.flatnonzero(np.diff(segments, prepend=-1))
    sizes = np.diff(first, append=len(codes))
    size = np.repeat(sizes, sizes)
    left = np.repeat(first + sizes, sizes) - np.arange(len(codes))  # units to the segment's end
    grams = []
    for n in range(1, COVER + 1):
        starts = np.flatnonzero((left >= n) & ((size == n) | ((size > n) & (n == COVER))))
        if len(starts):
            grams.append((n, starts, ngram_hashes(codes, n)[starts]))
    return grams


def _between(gram: Gram, begin: int, end: int) -> Gram:
    """The n-grams of one item, whose units are those from begin to end."""
    n, starts, hashes = gram
    first, last = np.searchsorted(starts, (begin, end))
    return n, starts[first:last] - begin, hashes[first:last]


def _densest(grams: Sequence[Gram], part: np.ndarray, passage: np.ndarray, width: int) -> int:
    """The most units within a width of a passage that cover a part of an item."""
    used = np.zeros(len(passage), np.bool_)
    for n, starts, hashes in grams:
        there = _is_in(ngram_hashes(passage, n), hashes[part[starts]])
        _mark(used, np.flatnonzero(there), n)
    total = np.concatenate([[0], used.cumsum()])
    return int((total[width:] - total[:-width]).max() if width < len(total) else total[-1])


def _joined(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The units of texts one after the other, and int64 `[texts + 1]`, where each one starts."""
    joined = "\n".join(texts)
    lengths = [len(text) + 1 for text in texts]
    if len(joined.encode("utf-16-le")) > 2 * len(joined):  # characters of two UTF-16 units
        lengths = [len(text.encode("utf-16-le")) // 2 + 1 for text in texts]
    codes, places = units(joined)
    return codes, np.searchsorted(places, np.array([0, *lengths]).cumsum())


def _distinct(hashes: np.ndarray, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different pairs, sorted."""
    order = np.lexsort((items, hashes))
    hashes, items = hashes[order], items[order]
    is_new = np.ones(len(order), np.bool_)
    is_new[1:] = (hashes[1:] != hashes[:-1]) | (items[1:] != items[:-1])
    return hashes[is_new], items[is_new]


def _is_in(hashes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """`np.isin` for few values, where it takes most of the time."""
    if not len(others):
        return np.zeros(len(hashes), np.bool_)
    others = np.sort(others)
    return others[np.minimum(np.searchsorted(others, hashes), len(others) - 1)] == hashes


def _mark(mask: np.ndarray, starts: np.ndarray, n: int) -> None:
    """Sets the n places from each start."""
    for place in range(n):
        mask[starts + place] = True
