"""Exact and near-duplicates, found in one pass in the order of the data; the first one is kept.

A worker turns an example into a signature, a few 8-byte keys; to the parent it is a duplicate if
one of them occurred before. Exact: one key, a digest of the text. Near: MinHash over character
5-grams (Broder 1997) in ten bands, whose digests are the keys: two texts of Jaccard similarity s
share a key with probability 1 - (1 - s^r)^10, where r is the number of rows of a band. Each key
also holds a digest of the text's critical parts (`critical.py`): texts that differ in a number, a
unit, a side, a negation or a name share none. Two different texts share a key with a probability of
2^-64 per pair of keys.

MinHash comes from the library `rensa`, which needs no scipy and is eight times as fast on our text
as `datasketch`, which would take longer than everything else together.
"""

import hashlib
import importlib
import math
from array import array
from typing import Any

import numpy as np

from megatron_chimed.data.cleaning.config import CleaningConfig
from megatron_chimed.data.cleaning.critical import critical_digest
from megatron_chimed.data.cleaning.ngrams import (
    MULTIPLIERS,
    fold,
    hash_rows,
    mix,
    ngram_hashes,
)
from megatron_chimed.data.cleaning.report import CleaningReport, RuleReport
from megatron_chimed.errors import DataError

SHINGLE = 5
BANDS = 10
SEED = 42
KEY_BYTES = 8

SHARDS = 256  # each grows on its own, so growing needs little memory beyond the limit
FIRST_SLOTS = 64
MAX_LOAD = 0.6  # linear probing examines about two slots per key at this load
MIB = 1 << 20


def minhash() -> Any:
    """The class of `rensa`, an extension without type stubs; loaded only if needed."""
    return importlib.import_module("rensa").RMinHash


def exact_signature(text: str) -> bytes:
    """The key of a text: equal texts, equal keys."""
    return hashlib.blake2b(text.encode("utf-8"), digest_size=KEY_BYTES).digest()


def near_signature(text: str, threshold: float) -> bytes | None:
    """The keys of a text's bands, or None for a text without letters or digits.

    Args:
        text: The text.
        threshold: Similarity at which two texts with equal critical parts share a key with
            probability 0.65: the rows of a band are chosen so that `threshold ** rows` is about
            1 / BANDS.
    """
    shingles = ngram_hashes(fold(text), SHINGLE)
    if len(shingles) == 0:
        return None
    rows = round(math.log(1 / BANDS) / math.log(threshold))
    digests = minhash().digest_matrix_from_flat_token_hashes(
        shingles, [0, len(shingles)], BANDS * rows, SEED
    )
    bands = np.array(digests.to_rows()[0], np.uint32).reshape(BANDS, rows)
    # Each band has its own multiplier, so that only keys of the same band can be equal.
    keys = mix(hash_rows(bands) ^ MULTIPLIERS[:BANDS] ^ np.uint64(critical_digest(text)))
    return keys.astype("<u8").tobytes()


class Deduplicator:
    """Remembers the keys seen so far. A resumed run replays the same signatures.

    Memory: 13 to 27 bytes per key, so 1 GiB holds about 8 million different texts when looking for
    near-duplicates (ten keys each) and 80 million for exact ones (one key each).

    Args:
        config: Kind of duplicates and memory limit.
    """

    def __init__(self, config: CleaningConfig) -> None:
        self._rule = f"removed.{config.deduplicate}_duplicate"
        self._keys = KeySet(config.dedup_memory_mb * MIB)
        self.seen = 0
        self.removed = 0

    def is_duplicate(self, signature: bytes) -> bool:
        """Whether an earlier text had one of the keys; otherwise remembers them.

        Raises:
            DataError: The memory limit is reached.
        """
        self.seen += 1
        keys = array("Q", signature)
        if any(key in self._keys for key in keys):
            self.removed += 1
            return True
        for key in keys:
            if not self._keys.add(key):
                raise DataError(
                    f"deduplication has used its --dedup-memory-mb {self._keys.max_bytes // MIB} "
                    f"after {self.seen} examples, of which {self.seen - self.removed} differ. "
                    "Raise it, or use --deduplicate exact, which takes a tenth of the memory."
                )
        return False

    def report(self) -> CleaningReport:
        """What was removed, to be merged with the reports of the cleaners."""
        rules = (RuleReport(rule=self._rule, count=self.removed),) if self.removed else ()
        return CleaningReport(removed=self.removed, rules=rules)


class KeySet:
    """A set of 64-bit keys with open addressing, in a fifth of the memory of Python's set.

    Args:
        max_bytes: Limit of all tables together; while a table grows, it exists twice.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = SHARDS * FIRST_SLOTS * KEY_BYTES
        self._tables = [array("Q", bytes(FIRST_SLOTS * KEY_BYTES)) for _ in range(SHARDS)]
        self._counts = [0] * SHARDS

    def __len__(self) -> int:
        return sum(self._counts)

    def __contains__(self, key: int) -> bool:
        key = key or 1  # 0 marks an empty slot
        table = self._tables[key % SHARDS]
        return table[_slot(table, key)] == key

    def add(self, key: int) -> bool:
        """Adds a key; False if the memory limit leaves no room."""
        key = key or 1
        shard = key % SHARDS
        if self._counts[shard] + 1 > MAX_LOAD * len(self._tables[shard]) and not self._grow(shard):
            return False
        table = self._tables[shard]
        slot = _slot(table, key)
        self._counts[shard] += table[slot] == 0
        table[slot] = key
        return True

    def _grow(self, shard: int) -> bool:
        old = self._tables[shard]
        added = len(old) * KEY_BYTES
        if self.bytes + added > self.max_bytes:
            return False
        table = array("Q", bytes(2 * added))
        for key in old:
            if key:
                table[_slot(table, key)] = key
        self._tables[shard] = table
        self.bytes += added
        return True


def _slot(table: array, key: int) -> int:
    """The slot of a key; the low bits select the table, the next ones the slot."""
    last = len(table) - 1  # a power of two, less one
    slot = (key >> 8) & last
    while (found := table[slot]) and found != key:
        slot = (slot + 1) & last
    return slot
