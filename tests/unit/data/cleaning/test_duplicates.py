"""Duplicates: the first is kept, near ones match set similarity, memory stays within its limit."""

import random
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_chimed.data.cleaning import CleaningConfig, Deduplicator
from megatron_chimed.data.cleaning import duplicates as module
from megatron_chimed.data.cleaning.critical import critical_parts
from megatron_chimed.data.cleaning.duplicates import (
    BANDS,
    KeySet,
    exact_signature,
    near_signature,
)
from megatron_chimed.data.cleaning.ngrams import fold, ngram_hashes
from megatron_chimed.errors import DataError
from tests.unit.data.cleaning.near_duplicates import critical_pairs, same_pairs

EXACT = CleaningConfig(deduplicate="exact")
NEAR = CleaningConfig(deduplicate="near")
CHARACTERS = "".join(c for c in map(chr, range(0x4E00, 0x9000)) if not critical_parts(c))


def text_of(length, seed):
    return "".join(random.Random(seed).choices(CHARACTERS, k=length))


def edited(text, places, seed=0):
    generator = random.Random(seed)
    characters = list(text)
    for place in generator.sample(range(len(text)), places):
        characters[place] = generator.choice(CHARACTERS[:8])
    return "".join(characters)


def jaccard(a, b):
    a, b = ({text[i : i + 5] for i in range(len(text) - 4)} for text in (a, b))
    return len(a & b) / len(a | b)


def run(signatures, config=NEAR):
    deduplicator = Deduplicator(config)
    return [deduplicator.is_duplicate(signature) for signature in signatures], deduplicator


def test_the_first_of_equal_texts_is_kept():
    texts = ["发热", "咳嗽", "发热", "发热。", "咳嗽"]
    found, deduplicator = run(map(exact_signature, texts), EXACT)
    assert found == [False, False, True, False, True]
    report = deduplicator.report()
    assert report.removed == 2
    assert [(rule.rule, rule.count) for rule in report.rules] == [("removed.exact_duplicate", 2)]


def test_punctuation_blanks_widths_and_case_make_no_difference_to_near_ones():
    texts = [
        "体温38.5℃，服用ABC片，每日3次。",
        "体温 38.5 ℃ 服用ａｂｃ片（每日３次）",
        "体温39.5℃，服用ABC片，每日3次",
    ]
    found, _ = run([near_signature(text, 0.9) for text in texts], NEAR)
    assert found == [False, True, False]


def test_texts_too_short_for_a_5_gram_and_without_letters():
    found, _ = run([near_signature(text, 0.8) for text in ("发热", "咳嗽", "发热！")])
    assert found == [False, False, True]
    assert near_signature("……！", 0.8) is None


@pytest.mark.parametrize(("threshold", "rows"), [(0.5, 3), (0.8, 10), (0.9, 22)])
def test_the_share_that_is_found_follows_the_formula(threshold, rows):
    """Pairs of known similarity, against 1 - (1 - s^r)^b with the true s of their 5-gram sets."""
    for places in (2, 8, 20, 60):
        found, expected = 0, 0.0
        for seed in range(150):
            text = text_of(400, seed)
            other = edited(text, places, seed)
            pair = [near_signature(t, threshold) for t in (text, other)]
            assert len(pair[0]) == 8 * BANDS
            found += run(pair)[0][1]
            expected += 1 - (1 - jaccard(text, other) ** rows) ** BANDS
        assert abs(found - expected) < 4 * np.sqrt(150 / 4)  # four standard deviations at most


def test_different_texts_are_no_duplicates():
    found, deduplicator = run([near_signature(text_of(300, seed), 0.8) for seed in range(2000)])
    assert not any(found)
    assert deduplicator.report().rules == ()


def test_a_chain_of_small_edits_is_compared_with_what_was_kept():
    """A duplicate is not remembered: removal does not spread from text to text."""
    chain = [text_of(300, 1)]
    for seed in range(30):
        chain.append(edited(chain[-1], 3, seed))
    found, _ = run([near_signature(text, 0.8) for text in chain])
    assert found[1] and not all(found[1:])


def test_fed_again_after_an_interruption_it_decides_alike():
    texts = [edited(text_of(200, seed % 40), seed % 7, seed) for seed in range(200)]
    signatures = [near_signature(text, 0.8) for text in texts]
    whole, _ = run(signatures)
    first, resumed = run(signatures[:90])
    assert first + [resumed.is_duplicate(s) for s in signatures[90:]] == whole
    assert sum(whole) == resumed.removed > 20


def test_signatures_do_not_change():
    """Journals hold them: a change of any constant must be a new format of the journal."""
    assert exact_signature("发热").hex() == "71f906b5db13e3b9"
    assert (
        near_signature("体温38.5℃，多饮水。", 0.8)[:16].hex() == "55019a77ebadd7de502285486dd8a726"
    )


def test_the_memory_has_a_limit(monkeypatch):
    monkeypatch.setattr(module, "MIB", 1 << 10)
    config = CleaningConfig(deduplicate="near", dedup_memory_mb=512)  # KiB here
    deduplicator = Deduplicator(config)
    generator = np.random.Generator(np.random.PCG64(0))
    with pytest.raises(DataError) as caught:
        for _ in range(100_000):
            deduplicator.is_duplicate(
                generator.integers(1 << 64, size=10, dtype=np.uint64).tobytes()
            )
    assert "used its --dedup-memory-mb 512 after" in str(caught.value)
    keys = deduplicator._keys
    assert keys.bytes <= 512 << 10 < 2 * keys.bytes
    held = sum(sys.getsizeof(table) for table in keys._tables)
    assert held <= keys.bytes + 300 * len(keys._tables)
    assert 13 <= keys.bytes / len(keys) <= 27


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, (1 << 64) - 1) | st.integers(0, 40).map(lambda k: k << 8)))
def test_a_set_of_keys_is_a_set(numbers):
    mine, reference = KeySet(1 << 24), set()
    for number in numbers:
        number = number or 1  # 0 and 1 are the same key
        assert (number in mine) == (number in reference)
        assert mine.add(number)
        reference.add(number)
        assert number in mine and len(mine) == len(reference)


@settings(deadline=None)
@given(st.text(max_size=40), st.integers(1, 32))
def test_hashes_of_ngrams_are_equal_where_the_ngrams_are(text, n):
    folded = fold(text)
    n_used = min(n, len(folded))
    grams = (
        [tuple(folded[i : i + n_used]) for i in range(len(folded) - n_used + 1)] if n_used else []
    )
    hashes = ngram_hashes(folded, n).tolist()
    assert len(hashes) == len(grams)
    assert len(set(zip(hashes, grams, strict=True))) == len(set(hashes)) == len(set(grams))


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_texts_that_differ_in_what_matters_are_never_near_duplicates(threshold):
    pairs = list(critical_pairs())
    assert len(pairs) > 250
    removed = [pair.kind for pair in pairs if is_found(pair, threshold)]
    assert removed == []


def test_texts_that_say_the_same_are_still_near_duplicates():
    pairs = list(same_pairs())
    found = Counter(pair.kind for pair in pairs if is_found(pair, 0.8))
    planted = Counter(pair.kind for pair in pairs)
    assert found.total() >= 0.97 * planted.total()
    assert all(found[kind] >= 0.9 * planted[kind] for kind in planted)


def is_found(pair, threshold):
    return run([near_signature(text, threshold) for text in (pair.first, pair.second)])[0][1]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ""),
        ("我想请问这个怎么样", ""),
        ("每次１、２片", "每次#1#2片"),
        ("每次12片", "每次#12片"),
        ("2.5 毫克", "#2.5毫克"),
        ("结果（－）或（+）", "结#-+"),
        ("二十一岁，一般", "二十一岁"),
        ("帕金森病的病人", "帕金森"),
        ("口服ABC", "口abc"),
        ("祝您早日康复，以上内容仅供参考，不能代替医生面诊", ""),
        ("不能代替胰岛素", "不替胰素"),
        ("Hello, the doctor is not here", "nothere"),
        ("\ud800", ""),
    ],
)
def test_critical_parts(text, parts):
    assert critical_parts(text) == parts
