import lzma
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.quickstart.checks.baselines import (
    longest_shared_ngram,
    unigram_bits_per_byte,
    xz_bits_per_byte,
    xz_bits_per_byte_of_documents,
)


def test_unigram_equals_a_sum_by_hand():
    train, heldout = [0, 0, 1, 2], [0, 1, 3]
    counts = [3, 2, 2, 1]
    expected = -sum(math.log2(counts[i] / 8) for i in heldout) / 7
    assert unigram_bits_per_byte(
        np.array(train), np.array(heldout), vocab_size=4, heldout_bytes=7
    ) == pytest.approx(expected, rel=1e-12)


def test_unigram_of_uniform_tokens_is_their_entropy():
    ids = np.tile(np.arange(256), 50)
    assert unigram_bits_per_byte(ids, ids, 256, len(ids)) == pytest.approx(8.0)


def test_unigram_refuses_ids_outside_the_vocabulary():
    with pytest.raises(AssertionError, match="outside the vocabulary of 4"):
        unigram_bits_per_byte(np.array([4]), np.array([0]), 4, 1)


def test_xz_costs_fall_with_shared_text_and_match_the_definition():
    rng = np.random.default_rng(0)
    train = "".join(map(chr, rng.integers(0x4E00, 0x5200, 4000)))
    fresh = "".join(map(chr, rng.integers(0x4E00, 0x5200, 1000)))
    seen = xz_bits_per_byte(train, train[1000:2000])
    unseen = xz_bits_per_byte(train, fresh)
    assert seen.given_train < 0.1 < 3 < unseen.given_train
    assert seen.alone > 3
    preset = 9 | lzma.PRESET_EXTREME
    assert unseen.alone == 8 * len(lzma.compress(fresh.encode(), preset=preset)) / 3000


def test_xz_of_documents_does_not_let_one_document_help_the_next():
    rng = np.random.default_rng(1)
    train, fresh = ("".join(map(chr, rng.integers(0x4E00, 0x5200, n))) for n in (3000, 500))
    once = xz_bits_per_byte_of_documents(train, [fresh])
    assert xz_bits_per_byte_of_documents(train, [fresh, fresh]) == pytest.approx(once)
    assert xz_bits_per_byte(train, fresh + fresh).given_train < 0.6 * once
    assert xz_bits_per_byte_of_documents(train, [train[500:900]]) < 0.2 < 3 < once


def naive_longest(train, heldout):
    for length in range(min(len(train), len(heldout)), 0, -1):
        pieces = {heldout[i : i + length] for i in range(len(heldout) - length + 1)}
        for start in range(len(train) - length + 1):
            if train[start : start + length] in pieces:
                return length, train[start : start + length]
    return 0, ""


@settings(max_examples=300, deadline=None)
@given(st.text("ab", max_size=40), st.text("abc", max_size=40))
def test_longest_shared_ngram_equals_the_naive_search(train, heldout):
    assert longest_shared_ngram(train, heldout) == naive_longest(train, heldout)


def test_longest_shared_ngram_of_equal_long_texts_is_the_whole():
    text = "患者咳嗽三天" * 5000
    assert longest_shared_ngram(text, text) == (len(text), text)


def test_longest_shared_ngram_without_a_common_character():
    assert longest_shared_ngram("甲乙丙", "丁戊") == (0, "")
