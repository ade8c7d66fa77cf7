"""The C++ encoder gives sentencepiece's ids for unigram models, however its sums are rounded."""

import random

import pytest
import sentencepiece
from hypothesis import given, settings
from sentencepiece import sentencepiece_model_pb2 as pb2

from megatron_chimed.tokenizer import SentencePieceTokenizer
from tests.unit.tokenizer.models import SYMBOLS, Type, edit
from tests.unit.tokenizer.samples import LINES, TEXTS, train_unigram_model
from tests.unit.tokenizer.test_cpp_encoder import (
    ALPHABET,
    SPICE,
    random_texts,
    texts,
    windowed,
)

MODEL = train_unigram_model()


def level_scores(proto):
    """Many ways of equal scores, and sums that are rounded."""
    for number, piece in enumerate(proto.pieces):
        if piece.type == Type.NORMAL:
            piece.score = -1.1 - number % 3


def unused(proto):
    for piece in list(proto.pieces)[40:60]:
        piece.type = Type.UNUSED


def positive(proto):
    for number, piece in enumerate(proto.pieces):
        piece.score = 1.7 + number % 5


MODELS = {
    "plain": MODEL,
    "bytes": train_unigram_model(byte_fallback=True, vocab_size=420),
    "identity": train_unigram_model(normalization_rule_name="identity", add_dummy_prefix=False),
    "symbols": train_unigram_model(user_defined_symbols=SYMBOLS),
    "extra spaces": train_unigram_model(remove_extra_whitespaces=False),
    "suffix": train_unigram_model(treat_whitespace_as_suffix=True),
    "equal scores": edit(MODEL, level_scores),
    "unused": edit(MODEL, unused),
    "positive": edit(MODEL, positive),
}


def chat(model: bytes) -> SentencePieceTokenizer:
    size = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
    tokenizer = SentencePieceTokenizer(model, {"<a>": size, "<a>b": size + 1})
    assert tokenizer.fast == "C++: unigram model with sentencepiece's ids"
    return tokenizer


CHATS = {name: chat(model) for name, model in MODELS.items()}


@pytest.mark.parametrize("name", MODELS)
def test_ids_of_known_and_random_texts_are_those_of_sentencepiece(name):
    found = random_texts(random.Random(name), ALPHABET, 300)
    CHATS[name].spot_check([*TEXTS, *LINES, *SPICE, "<a>b <a> ", " <a> ", "e<a>", *found])
    for window in (1, 9):
        windowed(CHATS[name], window).spot_check([*found[:100], "".join(found), *TEXTS])


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=40, deadline=None)
@given(text=texts)
def test_ids_of_any_text_are_those_of_sentencepiece(name, text):
    CHATS[name].spot_check([text])


@pytest.mark.parametrize("name", ["plain", "equal scores", "positive"])
def test_sums_of_long_texts_are_rounded_as_in_sentencepiece(name):
    """Beyond 100,000 it begins a new sum; without that, such a text gets other ids."""
    random_ = random.Random(5)
    parts = [*LINES, "!!!!!", "-----", "热热热热热", " ", "38.5"]
    text = "".join(random_.choices(parts, k=6000))
    for tokenizer in (CHATS[name], windowed(CHATS[name], 500)):
        tokenizer.spot_check([text])


def random_unigram(random_: random.Random, alphabet: str) -> bytes:
    """A vocabulary that no training gives: few scores, holes, symbols of any length."""
    proto = pb2.ModelProto()
    proto.trainer_spec.model_type = pb2.TrainerSpec.UNIGRAM
    proto.normalizer_spec.remove_extra_whitespaces = random_.random() < 0.5
    proto.pieces.add(piece="<unk>", type=Type.UNKNOWN)
    proto.pieces.add(piece="<s>", type=Type.CONTROL)
    proto.pieces.add(piece="</s>", type=Type.CONTROL)
    lengths = [1, 1, 2, 2, 3, 4, 5, 9]
    found = {"".join(random_.choices(alphabet, k=random_.choice(lengths))) for _ in range(60)}
    scores = [random_.uniform(-12, random_.choice([0, 0, 3])) for _ in range(4)]
    for text in sorted(found):
        kind = random_.choices([Type.NORMAL, Type.USER_DEFINED, Type.UNUSED], [30, 1, 1])[0]
        proto.pieces.add(piece=text, score=random_.choice(scores), type=kind)
    proto.pieces.add(piece="zz", score=-1.0, type=Type.NORMAL)
    return proto.SerializeToString()


def test_ids_are_those_of_sentencepiece_for_vocabularies_that_no_training_gives():
    random_ = random.Random(11)
    for _ in range(60):
        alphabet = random_.choice(["ab", "abc", "ab\u2581", "abc \u2581", "abcdefg", "体温发热x"])
        tokenizer = chat(random_unigram(random_, alphabet))
        found = random_texts(random_, alphabet + " ", 40)
        tokenizer.spot_check(found)
        windowed(tokenizer, window=1).spot_check(found)


def test_real_texts(real_data):
    model = (real_data / "chinese_sp.model").read_bytes()
    tokenizer = SentencePieceTokenizer(model)
    lines = (real_data / "fever.txt").read_text(encoding="utf-8").splitlines()
    tokenizer.spot_check([*lines[::7], "\n".join(lines), *TEXTS, *LINES])
