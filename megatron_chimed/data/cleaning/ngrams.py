"""Hashes of the character n-grams of a text, for duplicates and for overlap with test questions.

Characters, because Chinese has no spaces between words; letters and digits only, of one width and
case, so that punctuation, spaces and width make no difference.
"""

import functools
import random
import unicodedata

import numpy as np

MAX_N = 32
ALONE, LETTER, DIGIT = 1, 2, 3  # a unit of its own, or part of a word or number
FIRST_ALONE = 0x0590  # below are the scripts that put spaces between words: Latin, Greek, Cyrillic


def _odd_numbers(count: int) -> list[int]:
    """Fixed random odd numbers: signatures in journals depend on them."""
    draw = random.Random(20231103)
    return [draw.getrandbits(64) | 1 for _ in range(count)]


BASE, *_WEIGHTS = _odd_numbers(MAX_N + 1)
MULTIPLIERS = np.array(_WEIGHTS, np.uint64)


def fold(text: str) -> np.ndarray:
    """The letters and digits of a text as n-grams see them: uint16 UTF-16 units `[characters]`."""
    units = np.frombuffer(text.encode("utf-16-le"), np.uint16)
    folded = _fold_table()[units]
    return folded[folded != 0]


@functools.cache
def _fold_table() -> np.ndarray:
    """uint16 `[65536]`: what each unit becomes, 0 for nothing. Takes 40 ms to build."""
    table = np.zeros(1 << 16, np.uint16)
    for unit in range(1 << 16):
        if 0xD800 <= unit < 0xE000:  # half of a character beyond the first plane
            table[unit] = unit
            continue
        folded = unicodedata.normalize("NFKC", chr(unit)).lower()[
            0
        ]  # the m of the single character "mg"
        if folded.isalnum():
            table[unit] = min(ord(folded), 0xFFFF)
    return table


def units(text: str) -> tuple[np.ndarray, np.ndarray]:
    """The Chinese characters, words and numbers of a text, each a unit of about equal weight.

    A word or number is a run of letters or digits without anything between them, so that four
    units in a row are as rare in an English text as in a Chinese one.

    Returns:
        uint64 hashes `[units]`, and int64 `[units]`, where in the UTF-16 units of the text each
        one starts.
    """
    written = np.frombuffer(text.encode("utf-16-le"), np.uint16)
    hashes, kinds = _unit_tables()
    kinds = kinds[written]
    places = np.flatnonzero(kinds)
    kinds, hashes = kinds[places], hashes[written[places]]
    is_joined = (kinds[1:] > ALONE) & (kinds[1:] == kinds[:-1]) & (np.diff(places) == 1)
    if not is_joined.any():
        return hashes, places
    starts = np.concatenate([[0], np.flatnonzero(~is_joined) + 1])
    within = np.arange(len(places)) - np.repeat(starts, np.diff(starts, append=len(places)))
    # The first character counts as it is, so that one that stands alone has the same hash.
    hashes[within > 0] *= MULTIPLIERS[np.minimum(within[within > 0], MAX_N - 1)]
    return np.add.reduceat(hashes, starts), places[starts]


@functools.cache
def _unit_tables() -> tuple[np.ndarray, np.ndarray]:
    """Per UTF-16 unit: uint64 hash of its folded form, and uint8 kind, 0 for no unit."""
    folded = _fold_table()
    is_digit = (folded >= ord("0")) & (folded <= ord("9"))
    kinds = np.where(folded < FIRST_ALONE, np.where(is_digit, DIGIT, LETTER), ALONE)
    kinds[folded == 0] = 0
    return mix(folded * MULTIPLIERS[0]), kinds.astype(np.uint8)


def ngram_hashes(folded: np.ndarray, n: int) -> np.ndarray:
    """Hashes of all n-grams.

    Args:
        folded: From `fold`, or hashes from `units`.
        n: Characters or units of an n-gram, at most 32.

    Returns:
        uint64 `[characters - n + 1]`, in order and with repetitions; one hash of the whole text if
        it has fewer than n characters, none if it is empty.
    """
    n = min(n, len(folded))
    if n == 0:
        return np.empty(0, np.uint64)
    # A polynomial modulo 2^64; that of 2k characters combines two of k: log2(n) passes, not n.
    codes = folded.astype(np.uint64)
    hashes, width = codes, 1
    for bit in f"{n:b}"[1:]:
        hashes = hashes[:-width] * np.uint64(pow(BASE, width, 1 << 64)) + hashes[width:]
        width *= 2
        if bit == "1":
            hashes = hashes[:-1] * np.uint64(BASE) + codes[width:]
            width += 1
    return mix(hashes)


def hash_rows(rows: np.ndarray) -> np.ndarray:
    """uint64 `[rows]` from uint32 `[rows, columns]`, at most 32 columns."""
    weighted = rows.astype(np.uint64) * MULTIPLIERS[: rows.shape[1]]
    return mix(weighted.sum(axis=1, dtype=np.uint64))


def mix(hashes: np.ndarray) -> np.ndarray:
    """Mixes high bits into low bits, which in products modulo 2^64 depend on low bits only."""
    hashes = (hashes ^ (hashes >> np.uint64(32))) * MULTIPLIERS[-1]
    return hashes ^ (hashes >> np.uint64(29))
