"""The C++ encoder gives sentencepiece's ids, for every model that it accepts and any text."""

import csv
import json
import random
import re
import sys

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_chimed._data_helpers import SentencePieceEncoder
from megatron_chimed.errors import DataError
from megatron_chimed.tokenizer import SentencePieceTokenizer, load_tokenizer
from megatron_chimed.tokenizer.cpp_encoder import FastPath
from tests.unit.tokenizer.models import SYMBOLS, Type, edit, odd_models, random_model, train_bpe
from tests.unit.tokenizer.samples import LINES, TEXTS, train_model, train_unigram_model

ODD_MODELS = odd_models()
ALPHABET = "发热患者体温血压38.5℃, mgHadeirt ："
# Spaces of many kinds, what NFKC composes and takes apart, astral and unassigned code points.
SPICE = [
    *("\0", " ", "  ", "\u2581", "\n", "\t", "\u3000", "\u200b", "\xa0", "\x85", "\xad", "\ufeff"),
    *("\u0301", "e\u0301", "ﬁ", "①", "Ａ", "ｶﾞ", "か\u3099", "\u1100\u1161\u11a8", "½", "İ", "…"),
    *("😀", "𠮷", "\U0010ffff", "\ufffe", "\uffff", "龘", "<a>", "<a>b", "体温", "fever"),
    *SYMBOLS,
]
characters = st.characters(exclude_categories=["Cs"])
texts = st.lists(
    st.one_of(
        st.sampled_from([*SPICE, *ALPHABET]),
        st.text(characters),
        st.builds(lambda point, count: point * count, characters, st.integers(1, 300)),
    )
).map("".join)


def chat(model: bytes) -> SentencePieceTokenizer:
    """With added tokens of which one begins another."""
    size = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
    tokenizer = SentencePieceTokenizer(model, {"<a>": size, "<a>b": size + 1, "\u0301x": size + 2})
    assert tokenizer.fast.startswith("C++: ")
    return tokenizer


CHATS = {name: chat(model) for name, model in ODD_MODELS.items()}


def random_texts(random_: random.Random, alphabet: str, count: int) -> list[str]:
    found = []
    for _ in range(count):
        parts = random_.choices(alphabet, k=random_.choice([0, 1, 2, 3, 8, 21, 60, 150]))
        for place in range(0, len(parts), 4):
            parts[place] = random_.choice([parts[place], parts[place] * 9, random_.choice(SPICE)])
        found.append("".join(parts))
    return found


@pytest.mark.parametrize("name", ODD_MODELS)
def test_ids_of_known_texts_are_those_of_sentencepiece(name):
    CHATS[name].spot_check([*TEXTS, *LINES, *SPICE, "<a>b <a>\u0301x", " <a> ", "e<a>"])


@pytest.mark.parametrize("name", ODD_MODELS)
@settings(max_examples=60, deadline=None)
@given(text=texts)
def test_ids_of_any_text_are_those_of_sentencepiece(name, text):
    CHATS[name].spot_check([text])


@pytest.mark.parametrize("name", ODD_MODELS)
def test_ids_of_random_text_are_those_of_sentencepiece(name):
    CHATS[name].spot_check(random_texts(random.Random(name), ALPHABET, 400))


def windowed(tokenizer: SentencePieceTokenizer, window: int) -> SentencePieceTokenizer:
    """The same one, whose texts are encoded in windows of so few characters."""
    model, added = tokenizer.model_bytes, tokenizer.added_tokens
    found = SentencePieceTokenizer(model, added)
    encoder = SentencePieceEncoder(model, added, window)
    found.__dict__["_fast_path"] = FastPath(encoder=encoder, reason="windows")
    return found


@pytest.mark.parametrize("window", [1, 9])
@pytest.mark.parametrize("name", ODD_MODELS)
def test_a_text_may_be_encoded_in_windows(name, window):
    tokenizer = windowed(CHATS[name], window)
    found = random_texts(random.Random(name), ALPHABET, 200)
    tokenizer.spot_check([*found, *TEXTS, *LINES, "".join(found), " ".join(found)])


def test_ids_are_those_of_sentencepiece_for_vocabularies_that_no_training_gives():
    random_ = random.Random(7)
    charsmap = {}
    edit(
        train_bpe(),
        lambda proto: charsmap.update(rules=proto.normalizer_spec.precompiled_charsmap),
    )
    options = [
        {},
        {"remove_extra_whitespaces": False},
        {"remove_extra_whitespaces": False, "add_dummy_prefix": False},
        {"escape_whitespaces": False},
        {"precompiled_charsmap": charsmap["rules"]},
    ]
    for number in range(75):
        alphabet = random_.choice(["ab", "abc", "ab\u2581", "abc \u2581", "abcdefg", "体温发热x"])
        model = random_model(random_, alphabet, **options[number % len(options)])
        found = random_texts(random_, alphabet + " ", 40)
        tokenizer = chat(model)
        tokenizer.spot_check(found)
        windowed(tokenizer, window=1).spot_check(found)


@pytest.mark.parametrize("run", ["a", "热", " ", "ab", "\u2581", "\U0001f600"])
def test_long_runs_are_exact_and_take_no_square_time(run):
    """Nowhere to cut: looking at all pairs each time would take an hour."""

    def add_run(proto):
        for length in (2, 3, 4, 8):
            text = (run * length)[:length].replace(" ", "\u2581")
            if text not in {piece.piece for piece in proto.pieces}:
                proto.pieces.add(piece=text, score=-float(length))

    tokenizer = chat(edit(ODD_MODELS["llama"], add_run))
    tokenizer.spot_check([run * length for length in (*range(45, 54), 300_000 // len(run))])


def test_threads_and_batches_change_nothing():
    tokenizer = CHATS["symbols"]
    batch = random_texts(random.Random(3), ALPHABET, 200)
    ids, lengths = tokenizer.encode_packed(batch)
    for threads in (2, 3, 16, 500):
        again, again_lengths = tokenizer.encode_packed(batch, threads=threads)
        assert np.array_equal(ids, again) and np.array_equal(lengths, again_lengths)
    assert [tokenizer.encode(text) for text in batch] == tokenizer.encode_batch(batch)
    assert tokenizer.encode_batch(batch) == tokenizer._encode_by_sentencepiece(batch, threads=1)


def test_packed_ids_are_as_narrow_as_the_vocabulary_allows():
    for name, dtype in (("llama", np.uint16), ("large", np.int32)):
        ids, lengths = CHATS[name].encode_packed(["发热", "", "a<a>"])
        assert (ids.dtype, lengths.dtype) == (dtype, np.int32)
        assert len(ids) == lengths.sum() and lengths[1] == 0
        ids, lengths = CHATS[name].encode_packed([])
        assert ids.dtype == dtype and len(ids) == len(lengths) == 0
    assert max(CHATS["large"].encode("发热<a>")) >= 1 << 16


@pytest.mark.parametrize(
    "model", [train_model(), train_unigram_model(), train_unigram_model(model_type="char")]
)
def test_an_end_follows_each_text_that_has_ids(model):
    tokenizer = SentencePieceTokenizer(model)
    batch = ["发热", "", "fever", ""]
    ids, lengths = tokenizer.encode_packed(batch, end_id=2)
    expected = [one + [2] if one else [] for one in tokenizer.encode_batch(batch)]
    assert ids.tolist() == [x for one in expected for x in one]
    assert lengths.tolist() == [len(one) for one in expected]
    again, again_lengths = tokenizer.encode_packed(batch, end_id=2, threads=3)
    assert np.array_equal(ids, again) and np.array_equal(lengths, again_lengths)


@pytest.mark.parametrize("width", ["", "\xe9", "热", "\U00020bb7"])
def test_strings_of_any_width_inside_python_are_read(width):
    CHATS["llama"].spot_check([width + "fever 38.5", "the" + width])


def unused(proto):
    proto.pieces[-1].type = Type.UNUSED


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (train_unigram_model(model_type="char"), "the model is of type char, not bpe or unigram"),
        (train_unigram_model(model_type="word"), "the model is of type word, not bpe or unigram"),
        (edit(train_model(), unused), "the model has unused pieces"),
        (
            edit(train_model(), lambda proto: setattr(proto.pieces[-1], "score", np.nan)),
            "a piece's score is not finite",
        ),
    ],
)
def test_a_model_of_another_kind_stays_with_sentencepiece(model, reason):
    tokenizer = SentencePieceTokenizer(model)
    assert tokenizer.fast == f"sentencepiece: {reason}"
    expected = sentencepiece.SentencePieceProcessor(model_proto=model).encode([*TEXTS, *LINES])
    assert tokenizer.encode_batch([*TEXTS, *LINES]) == expected
    ids, lengths = tokenizer.encode_packed([*TEXTS, *LINES], threads=2)
    assert ids.dtype == np.uint16 and ids.tolist() == [x for one in expected for x in one]
    assert lengths.tolist() == [len(one) for one in expected]
    tokenizer.spot_check(TEXTS)


def test_a_control_piece_that_text_can_spell_is_left_to_sentencepiece():
    """It finds the control piece where the text says the letter, and then fails."""

    def name_bos(proto):
        proto.pieces[1].piece = "@"

    reason = "sentencepiece: a control, unknown or byte piece is spelled like text"
    assert SentencePieceTokenizer(edit(train_model(), name_bos)).fast == reason


def test_a_missing_extension_is_a_reason_and_no_crash(monkeypatch):
    monkeypatch.setitem(sys.modules, "megatron_chimed._data_helpers", None)
    tokenizer = SentencePieceTokenizer(train_model())
    assert re.match(r"sentencepiece: .* is not built .* run `make install`", tokenizer.fast)
    assert tokenizer.encode("发热") == CHATS["llama"].encode("发热")


def test_a_wrong_encoder_does_not_pass_the_spot_check():
    model = train_model()
    tokenizer = SentencePieceTokenizer(model)
    wrong = chat(model)  # takes "<a>" out of the text, as the first does not
    tokenizer.__dict__["_fast_path"] = wrong._fast_path
    tokenizer.spot_check(["发热"])
    with pytest.raises(DataError, match=r"sentencepiece [\d.]+ disagree on 'x<a>' .*report this"):
        tokenizer.spot_check(["发热", "x<a>"])


@pytest.mark.parametrize("encode", ["encode_packed", "encode_batch"])
def test_a_lone_surrogate_is_an_error_on_every_path(encode):
    for model in (train_model(), train_unigram_model(), train_unigram_model(model_type="char")):
        with pytest.raises(DataError, match=r"lone surrogate U\+DFFF at character 3"):
            getattr(SentencePieceTokenizer(model), encode)(["a", "发热a\udfff"])


def test_what_is_no_text_is_a_type_error():
    with pytest.raises(TypeError, match="text 1 is no str"):
        CHATS["llama"].encode_packed(["a", b"b"])


def all_texts(folder) -> list[str]:
    """Every string of the real files."""
    found = (folder / "fever.txt").read_text(encoding="utf-8").split("\n")

    def walk(value):
        if isinstance(value, str):
            found.append(value)
        for item in value if isinstance(value, list | tuple) else ():
            walk(item)

    def read(line):
        json.loads(line, object_pairs_hook=lambda pairs: walk(pairs) or [v for _, v in pairs])

    for name in ("medical_corpus.txt", "medical_sft_1K_format.jsonl", "dpo_zh_500.jsonl"):
        for line in (folder / name).read_text(encoding="utf-8").splitlines():
            read(line)
    read((folder / "CMtMedQA_test.json").read_text(encoding="utf-8"))
    for path in sorted(folder.glob("cmmlu_medical/*/*.csv")):
        with path.open(encoding="utf-8", newline="") as rows:
            walk(list(csv.reader(rows)))
    return found


@pytest.mark.parametrize("make", ["llama", "ziya", "trained"])
def test_ids_of_all_real_texts_are_those_of_sentencepiece(real_data, make):
    texts = all_texts(real_data)
    assert sum(map(len, texts)) > 1_500_000
    model = (real_data / "llama2_tokenizer.model").read_bytes()
    if make == "trained":
        model = train_bpe_on(texts)
    if make == "ziya":
        model = extend(model, load_tokenizer(real_data / "chinese_sp.model"))
    size = SentencePieceTokenizer(model).model_size
    tokenizer = SentencePieceTokenizer(model, {"<human>": size, "<bot>": size + 1})
    assert tokenizer.fast.startswith("C++")
    tokenizer.spot_check(texts)
    tokenizer.spot_check(
        [f"<human>:{a}\n<bot>:{b}" for a, b in zip(texts[::7], texts[3::7], strict=False)]
    )


def train_bpe_on(texts) -> bytes:
    from megatron_chimed.tokenizer import bpe_training as training

    lines = [line for text in texts for line in text.splitlines() if line.strip()]
    return training.train_model(lines, vocab_size=8000, character_coverage=0.9995)


def extend(model: bytes, other: SentencePieceTokenizer) -> bytes:
    """As Ziya's vocabulary was made: Chinese pieces behind LLaMA's, all of score 0."""

    def add(proto):
        known = {piece.piece for piece in proto.pieces}
        for index in range(other.model_size):
            text = other.token(index)
            if text not in known and not other.is_control(index) and len(proto.pieces) < 39408:
                proto.pieces.add(piece=text, score=0.0)

    return edit(model, add)
