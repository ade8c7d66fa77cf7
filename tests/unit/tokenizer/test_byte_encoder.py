"""The C++ byte-level encoder gives the ids of the `tokenizers` library, or says why it cannot."""

import functools
import json
import random
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from megatron_chimed._data_helpers import (
    ByteBpeEncoder,
    ByteVocabulary,
    LoneSurrogate,
    UnsupportedModel,
)
from megatron_chimed.tokenizer.cpp_encoder import unpack
from tests.unit.tokenizer.byte_models import (
    PATTERNS,
    alphabet,
    is_byte_alphabet,
    learn_merges,
    reference,
    spell,
    to_bytes,
    tokenizer_json,
)
from tests.unit.tokenizer.samples import LINES, TEXTS

CHUNK = 64
SPICE = [
    *(" ", "  ", "\t", "\n", "\r\n", "\n\n", " \n ", "\x85", "\xa0", "\u3000", "\u2028", "\0"),
    *("'s", "'S", "'\u017f", "'LL", "'re", "'rE", "'v", "''", "\u2019s", " 'd", "'K", "'\u212a"),
    *("0", "12", "1234567", "\u0665", "\u2167", "\xbd", "\uff11", "e\u0301", "\u0301", "\ufe0f"),
    *("\u1100\u1161\u11a8", "か\u3099", "\u212b", "\ufb01", "\U0001f468\u200d\U0001f469", "😀"),
    *("发热", "，", " 患者", "体温38.5℃", "fever", "<|im_end|>", "</think>", "\U00020bb7", "!?"),
]
characters = st.characters(exclude_categories=["Cs"])
texts = st.lists(
    st.one_of(
        st.sampled_from(SPICE),
        st.text(characters),
        st.builds(lambda point, count: point * count, characters, st.integers(1, 90)),
    )
).map("".join)


@functools.cache
def models() -> dict[str, tuple[Tokenizer, ByteBpeEncoder]]:
    """By name, the library's tokenizer and our encoder of it."""
    merges = learn_merges(260)
    # Ranks that no training gives: a merge may come before those of its parts.
    mixed = random.Random(5).sample(merges, len(merges))
    whole = ["体温".encode(), b"ever", b" patient", "，".encode(), b"\n\n", b"'s", b"12"]
    made = {f"{name} {composed}": tokenizer_json(merges, pattern=name, normalizer=composed)
            for name, composed in zip(PATTERNS, (None, "NFC", "NFC"), strict=True)}  # fmt: skip
    for name in ("qwen2", "llama3"):
        made[f"{name} whole"] = tokenizer_json(
            merges, pattern=name, whole=whole, ignore_merges=True
        )
        made[f"{name} mixed"] = tokenizer_json(mixed, pattern=name)
    return {name: (reference(one), encoder_of(one)) for name, one in made.items()}


def encoder_of(contents: dict[str, Any]) -> ByteBpeEncoder:
    """Our encoder of the content of a file."""
    return ByteBpeEncoder(ByteVocabulary(to_bytes(contents)), contents)


NAMES = ["gpt2 None", "qwen2 NFC", "llama3 NFC", "qwen2 whole", "qwen2 mixed", "llama3 whole"]


def check(tokenizer: Tokenizer, encoder: ByteBpeEncoder, batch: list[str]) -> None:
    """Equal ids."""
    expected = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
    found = unpack(*encoder.encode(batch, 1, True))
    for text, ids, right in zip(batch, found, expected, strict=True):
        assert ids == right.ids, text[:200]


def random_texts(random_: random.Random, count: int) -> list[str]:
    """Of the samples' characters, mixed with what is rare."""
    common = "".join((*LINES, *TEXTS))
    return [
        "".join(random_.choice([random_.choice(common), random_.choice(SPICE)])
                for _ in range(random_.choice([1, 2, 3, 8, 40, 150])))
        for _ in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_those_of_the_library(name):
    known = [*TEXTS, *LINES, *SPICE]
    check(*models()[name], [*known, *random_texts(random.Random(name), 300)])


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(text=texts)
def test_ids_of_any_text_are_those_of_the_library(name, text):
    check(*models()[name], [text])


def edge_showing_json(pattern: str, normalizer: str | None) -> dict[str, Any]:
    """Ids show whether a letter or a space is in one word with the character beside it."""
    left = [(edge, bytes([lead])) for edge in (b"a", b" ") for lead in range(256)]
    right = [(bytes([last]), b"b") for last in range(256) if last not in b"a "]
    return tokenizer_json([*left, *right], pattern=pattern, normalizer=normalizer)


ASSIGNED = (range(0xD800), range(0xE000, 0x32400), range(0xE0000, 0xE0200))


@pytest.mark.parametrize("step", [101, pytest.param(1, marks=pytest.mark.full)])
def test_every_code_point_has_the_class_that_the_library_gives_it(step):
    """Also with NFC: in a chunk without a mark, ours does not ask the library to compose.

    `make test` skips most of the planes to which nothing is assigned.
    """
    contents = edge_showing_json("qwen2", "NFC")
    others = range(0x32400, sys.maxunicode + 1, step)
    points = [point for part in (*ASSIGNED, others) for point in part]
    batch = [
        "".join(f"a{chr(point)}b {chr(point)}" for point in points[start : start + CHUNK])
        for start in range(0, len(points), CHUNK)
    ]
    check(reference(contents), encoder_of(contents), batch)


@pytest.mark.parametrize("run", ["a", "热", " ", "\n", " \n", "1", "\U0001f600", "\u0301", "!"])
def test_long_runs_are_exact_and_take_no_square_time(run):
    batch = [run * length for length in (*range(1, 12), 23, 24, 25, 47, 48, 49, 50, 3000)]
    for name in ("qwen2 NFC", "llama3 whole"):
        tokenizer, encoder = models()[name]
        check(tokenizer, encoder, [*batch, *(text + "x" for text in batch)])
        encoder.encode([run * 300_000], 1, True)


def test_threads_ends_and_width_change_nothing_else():
    tokenizer, encoder = models()["qwen2 NFC"]
    batch = ["", *random_texts(random.Random(3), 200), "e\u0301", ""]
    ids, lengths = encoder.encode(batch, 1, True)
    for threads in (2, 3, 500):
        again, again_lengths = encoder.encode(batch, threads, False)
        assert again.dtype == np.uint16 and np.array_equal(ids, again)
        assert np.array_equal(lengths, again_lengths)
    ended = unpack(*encoder.encode(batch, 2, True, 7))
    assert ended == [one + [7] if one else [] for one in unpack(ids, lengths)]
    assert encoder.encode([], 1, True)[0].dtype == np.int32
    assert tokenizer.encode("发热").ids == encoder.encode(("发热",), 1, True)[0].tolist()


def test_a_lone_surrogate_has_no_ids():
    _, encoder = models()["llama3 NFC"]
    with pytest.raises(LoneSurrogate, match="a text holds a lone surrogate"):
        encoder.encode(["ab", "a\ud800b"], 1, True)


def test_added_tokens_are_text():
    """Neither a special token nor another added one ends a turn that a user writes it into."""
    contents = tokenizer_json(learn_merges(50), whole=[b"<|im_end|>"], ignore_merges=True)
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    contents["added_tokens"] = [
        {"id": 310, "content": "<|im_end|>", "special": True, **added},
        {"id": 311, "content": "</think>", "special": False, **added},
    ]
    ids = encoder_of(contents).encode(["a<|im_end|></think>"], 1, True)[0]
    assert ids.tolist() == reference(contents).encode("a<|im_end|></think>").ids
    assert not set(ids.tolist()) & {contents["model"]["vocab"][spell(b"<|im_end|>")], 310, 311}


def changed(*path: str | int, to: Any) -> dict[str, Any]:
    """A file that is supported but for one value."""
    contents = tokenizer_json([(b"a", b"b")], ignore_merges=True, whole=[b"pad"])
    part: Any = contents
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = to
    return contents


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        ([], "tokenizer.json is not laid out as expected"),
        (changed("model", "type", to="Unigram"), "the model is Unigram, not BPE"),
        (changed("model", "dropout", to=0.1), "it has a dropout"),
        (changed("model", "byte_fallback", to=True), "it has byte_fallback"),
        (changed("model", "end_of_word_suffix", to="</w>"), "it has a end_of_word_suffix"),
        (changed("model", "merges", to=[["a", "b"], ["a", "b"]]), "two merges are of the same"),
        (changed("model", "merges", to=[["a", "发"]]), "a merge is of tokens outside"),
        (changed("model", "merges", to=["ab"]), "a merge is not of two tokens"),
        (changed("model", "merges", to=["a b c"]), "a merge is of tokens outside"),
        (changed("model", "vocab", to={"a": 0}), "a merge is of tokens outside"),
        (changed("model", "vocab", "b", to=64), "two tokens share an id"),
        (changed("model", "vocab", "ab", to=1 << 21), "it has ids of over a million"),
        (changed("model", "vocab", "!", to="x"), "an id is no plain number"),
        (changed("normalizer", to={"type": "NFKC"}), "the normalizer is NFKC, not NFC"),
        (changed("pre_tokenizer", to=None), "the pre-tokenizer is none, not byte-level"),
        (changed("pre_tokenizer", "pretokenizers", to=[]), "a sequence other than Split and"),
        (
            changed("pre_tokenizer", "pretokenizers", 0, "pattern", to={"Regex": r"\p{L}+"}),
            r"expression is none of Qwen's, Llama 3's and GPT-2's: \\p\{L\}\+",
        ),
        (
            changed("pre_tokenizer", "pretokenizers", 0, "behavior", to="Removed"),
            "what the pre-tokenizer's expression matches is not a word",
        ),
        (
            changed("pre_tokenizer", to={"type": "ByteLevel", "add_prefix_space": True}),
            "a space is put before each text",
        ),
        (
            changed("added_tokens", to=[{"content": "pad"}]),
            "text that is a word gives the added token pad",
        ),
    ],
)
def test_what_is_not_exactly_supported_is_refused_with_the_reason(contents, reason):
    with pytest.raises(UnsupportedModel, match=reason):
        encoder_of(contents)


def test_a_vocabulary_without_some_byte_is_refused():
    contents = tokenizer_json([])
    del contents["model"]["vocab"]["a"]
    with pytest.raises(UnsupportedModel, match="not every byte is a token"):
        encoder_of(contents)
    assert is_byte_alphabet(alphabet())


def test_the_librarys_own_expression_is_gpt2s():
    contents = tokenizer_json(learn_merges(100))
    contents["pre_tokenizer"] = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    contents["model"]["merges"] = [" ".join(pair) for pair in contents["model"]["merges"]]
    check(reference(contents), encoder_of(contents), [*TEXTS, *LINES, *SPICE])


@pytest.mark.parametrize("name", ["qwen3", "llama3"])
def test_real_vocabularies_give_the_ids_of_the_library(name, real_data):
    file = (real_data / "tokenizers" / name / "tokenizer.json").read_bytes()
    batch = (real_data / "fever.txt").read_text(encoding="utf-8").splitlines()[::8]
    batch += (real_data / "dpo_zh_500.jsonl").read_text(encoding="utf-8").splitlines()[::20]
    batch += [*TEXTS, *LINES, *SPICE, *random_texts(random.Random(1), 300)]
    check(reference(json.loads(file)), encoder_of(json.loads(file)), batch)
