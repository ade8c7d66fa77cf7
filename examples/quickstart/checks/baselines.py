"""Baselines for a held-out loss, and how much of the held-out text training has seen verbatim.

A held-out loss is meaningful only relative to these: a model must beat the frequencies of single
tokens, should beat a general compressor that may read the training text, and must not owe either to
long passages that both texts share. All costs are bits per byte of UTF-8, which does not depend on
the tokenizer.
"""

import dataclasses
import lzma
import math
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class XzCost:
    """Bits per byte of held-out text under xz (LZMA2, preset 9 extreme)."""

    alone: float
    """The text compressed by itself."""
    given_train: float
    """Increase of the compressed size when it is appended to the training text as a whole. The
    dictionary of 64 MiB spans both, so it can refer to every string of the training text and to
    every earlier one of the held-out text."""


def unigram_bits_per_byte(
    train_ids: np.ndarray, heldout_ids: np.ndarray, vocab_size: int, heldout_bytes: int
) -> float:
    """Cost of held-out tokens under the training text's token frequencies, add-one smoothed.

    Args:
        train_ids: Token ids of the training text, [tokens], integers.
        heldout_ids: Token ids of the held-out text, [tokens], integers.
        vocab_size: Number of ids; each gets one extra count.
        heldout_bytes: Length of the held-out text in bytes of UTF-8, as the divisor.

    Returns:
        Bits per byte.

    Source: Laplace's rule, p(i) = (n_i + 1) / (N + V).
    """
    counts = np.bincount(train_ids, minlength=vocab_size)
    assert len(counts) == vocab_size, f"a training id is outside the vocabulary of {vocab_size}"
    log_probability = np.log2(counts + 1.0) - math.log2(len(train_ids) + vocab_size)
    return float(-log_probability[heldout_ids].sum() / heldout_bytes)


def xz_bits_per_byte(train_text: str, heldout_text: str) -> XzCost:
    """Cost of held-out text under xz, alone and after the training text.

    Each stream carries about 60 bytes of headers, which count in `alone` and cancel in
    `given_train`.
    """
    train, heldout = train_text.encode(), heldout_text.encode()
    alone = len(_xz(heldout))
    added = len(_xz(train + heldout)) - len(_xz(train))
    return XzCost(alone=8 * alone / len(heldout), given_train=8 * added / len(heldout))


def xz_bits_per_byte_of_documents(train_text: str, heldout_documents: Sequence[str]) -> float:
    """Cost of held-out documents under xz, each appended alone to the training text.

    Comparable to a model with a short context: neither learns from one held-out document for the
    next. Takes one compression of the training text per document, 0.4 s for 1 MB.
    """
    train = train_text.encode()
    documents = [document.encode() for document in heldout_documents]
    base = len(_lzma(train))
    added = sum(len(_lzma(train + document)) - base for document in documents)
    return 8 * added / sum(map(len, documents))


def longest_shared_ngram(train_text: str, heldout_text: str) -> tuple[int, str]:
    """The longest substring of the held-out text that the training text contains.

    Builds the suffix automaton of the held-out text and runs the training text through it: time
    linear in both lengths, memory about 0.5 kB per held-out character.

    Returns:
        Its length in characters and the string, the first one in the training text if several;
        (0, "") if no character is shared.

    Source: Blumer et al. 1985, "The smallest automaton recognizing the subwords of a text".
    """
    transitions, links, lengths = _suffix_automaton(heldout_text)
    state = matched = best = best_end = 0
    for position, character in enumerate(train_text):
        while state and character not in transitions[state]:
            state = links[state]
            matched = lengths[state]
        if character in transitions[state]:
            state = transitions[state][character]
            matched += 1
        if matched > best:
            best, best_end = matched, position + 1
    return best, train_text[best_end - best : best_end]


def _xz(data: bytes) -> bytes:
    return lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)


def _lzma(data: bytes) -> bytes:
    """The same without the container, whose padding to 4 bytes would blur a short document."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]
    return lzma.compress(data, format=lzma.FORMAT_RAW, filters=filters)


def _suffix_automaton(text: str) -> tuple[list[dict[str, int]], list[int], list[int]]:
    """Transitions, suffix links and longest lengths of the states; state 0 is the empty string."""
    transitions: list[dict[str, int]] = [{}]
    links, lengths = [-1], [0]
    last = 0
    for character in text:
        current = len(transitions)
        transitions.append({})
        links.append(0)
        lengths.append(lengths[last] + 1)
        state, last = last, current
        while state >= 0 and character not in transitions[state]:
            transitions[state][character] = current
            state = links[state]
        if state < 0:
            continue
        target = transitions[state][character]
        if lengths[target] == lengths[state] + 1:
            links[current] = target
            continue
        # The target also stands for longer strings: a clone takes over its shorter suffixes.
        clone = len(transitions)
        transitions.append(dict(transitions[target]))
        links.append(links[target])
        lengths.append(lengths[state] + 1)
        links[target] = links[current] = clone
        while state >= 0 and transitions[state].get(character) == target:
            transitions[state][character] = clone
            state = links[state]
    return transitions, links, lengths
