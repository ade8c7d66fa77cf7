"""An exported BPE tokenizer gives sentencepiece's ids for every text, or the export is refused."""

import itertools
import json
import random

import pytest
import tokenizers
from sentencepiece import sentencepiece_model_pb2 as pb2

from megatron_chimed.errors import DataError
from megatron_chimed.tokenizer import SentencePieceTokenizer, check_transformers_agreement
from megatron_chimed.tokenizer.bpe_export import export_bpe
from megatron_chimed.tokenizer.check_texts import texts_of_vocabulary
from megatron_chimed.tokenizer.saving import save_tokenizer
from tests.tiers import full_but

ALPHABET = "abc"


def bpe_model(scores, *, alphabet=ALPHABET, byte_fallback=True, kinds=()):
    """A model without normalisation or dummy prefix, of pieces and their scores."""
    proto = pb2.ModelProto()
    proto.trainer_spec.model_type = 2
    proto.trainer_spec.byte_fallback = byte_fallback
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = False
    proto.normalizer_spec.remove_extra_whitespaces = False
    for text, kind in (("<unk>", 2), ("<s>", 3), ("</s>", 3)):
        proto.pieces.add(piece=text, score=0.0, type=kind)
    for byte in range(256) if byte_fallback else ():
        proto.pieces.add(piece=f"<0x{byte:02X}>", score=0.0, type=6)
    for character in alphabet:
        proto.pieces.add(piece=character, score=-1000.0)
    for piece, score in scores.items():
        proto.pieces.add(piece=piece, score=score)
    for piece, kind in kinds:
        proto.pieces.add(piece=piece, score=0.0, type=kind)
    return proto.SerializeToString()


def differing(model, texts, folder):
    """The texts of which `tokenizers` gives other ids than sentencepiece, for what we export."""
    tokenizer = SentencePieceTokenizer(model)
    save_tokenizer(tokenizer, folder)
    other = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    found = other.encode_batch(texts, add_special_tokens=False)
    expected = tokenizer.encode_batch(texts)
    return [t for t, a, b in zip(texts, found, expected, strict=True) if a.ids != b]


def all_texts(characters, length):
    return [
        "".join(text)
        for size in range(1, length + 1)
        for text in itertools.product(characters, repeat=size)
    ]


def random_scores(random_):
    """A few pieces, many of equal score and in each other."""
    words = all_texts(ALPHABET, 4)[3:]
    chosen = random_.sample(words, random_.randint(3, 14))
    levels = random_.choice([(0.0,), (0.0, 0.0, -1.0), (0.0, -1.0, -2.0), (0.0, *range(-9, 0))])
    return {word: float(random_.choice(levels)) for word in chosen}


def test_random_vocabularies_are_exact_on_all_short_texts_or_refused(tmp_path):
    """With ties, circles, pieces that nothing forms, and characters that are no piece."""
    texts = all_texts("abcx", 5) + ["abcabcabcab", "aaaaaaaaaaaa", "a<0x41>b"]
    texts += ["".join(random.Random(i).choices(ALPHABET, k=8)) for i in range(500)]
    exact = refused = cut_out = 0
    for seed in range(60):
        random_ = random.Random(seed)
        alphabet = random_.choice(["abc", "ab"])
        model = bpe_model(
            random_scores(random_), alphabet=alphabet, byte_fallback=random_.random() < 0.7
        )
        try:
            wrong = differing(model, texts, tmp_path)
        except DataError:
            refused += 1
            continue
        assert not wrong, (seed, wrong[:3])
        exact += 1
        cut_out += json.loads((tmp_path / "tokenizer.json").read_text())["model"]["ignore_merges"]
    assert exact > 40 and refused > 1 and cut_out > 5, (exact, refused, cut_out)


@pytest.mark.parametrize(
    ("scores", "cuts_out"),
    [
        ({"ab": 0, "bc": -1, "abc": -2}, False),  # as trained
        ({"ab": 0, "bc": 0, "abc": 0}, False),  # tied, and an order exists
        ({"aa": 0, "aaa": 0, "aaaa": 0}, False),  # LLaMA's runs of spaces
        ({"ab": 0, "ba": 0}, True),  # a circle
        ({"ab": 0, "ba": 0, "bac": 0, "abca": 0}, True),  # closed words in each other
        ({"ab": 0, "ba": 0, "ca": 0, "cac": -1}, True),  # an open one: `cac` is made with it
        ({"abx": 0, "bx": 0}, True),  # a character that is no piece
    ],
)
def test_the_simplest_form_that_is_exact_is_written(tmp_path, scores, cuts_out):
    assert not differing(bpe_model(scores), all_texts("abcx", 6), tmp_path)
    written = json.loads((tmp_path / "tokenizer.json").read_text())
    assert written["model"]["ignore_merges"] is cuts_out
    assert (written["pre_tokenizer"] is not None) is cuts_out


@pytest.mark.parametrize(
    ("scores", "kinds", "reason"),
    [
        ({"cc": 0, "ab": -1, "ba": -1}, (), "the pieces 'ab', 'ba' have equal scores"),
        ({"cc": 0, "bx": -1}, (), "piece 'bx' has a character that is no piece"),
        ({"cc": 0}, [("ab", 4)], "piece 'ab' is user-defined"),
        ({"cc": 0}, [("ab", 5)], "piece 'ab' is unused"),
    ],
)
def test_a_refusal_names_the_pieces_and_the_way_out(tmp_path, scores, kinds, reason):
    tokenizer = SentencePieceTokenizer(bpe_model(scores, kinds=kinds))
    with pytest.raises(DataError) as caught:
        save_tokenizer(tokenizer, tmp_path)
    for text in (reason, "--weights-only", "slow LlamaTokenizer of transformers 4.46"):
        assert text in str(caught.value)
    assert not (tmp_path / "tokenizer.json").exists()
    save_tokenizer(tokenizer, tmp_path, for_transformers=False)
    assert (tmp_path / "tokenizer.model").exists()


def test_text_that_spells_an_entry_is_not_taken_for_it(tmp_path):
    """Whole segments are looked up: bytes, and pieces that no merges form."""
    model = bpe_model({"ab": 0, "ba": 0, "cdc": -1, "dcd": -2}, alphabet="abcd")
    texts = ["<0x41>", "ab<0x41>ab", "cdc", "abcdcba", "ab<0x41>cdc", "<0x41><0x41>", "abba"]
    assert not differing(model, texts, tmp_path)


def test_long_texts_are_cut_at_the_speed_of_short_ones(tmp_path):
    """A run of a million characters stays within Oniguruma's limits."""
    texts = ["c" * 1_000_000, "ac" * 300_000, "ab" * 300_000]
    assert not differing(bpe_model({"ab": 0, "ba": 0}), texts, tmp_path)


def test_the_check_finds_what_an_order_by_score_alone_gets_wrong(tmp_path):
    """Texts made from the vocabulary show a wrong tie, which the fixed texts do not."""
    tokenizer = SentencePieceTokenizer(bpe_model({"热a": 0, "a热": 0}, alphabet="a热"))
    save_tokenizer(tokenizer, tmp_path)
    check_transformers_agreement(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["pre_tokenizer"] = None
    content["model"] |= {"ignore_merges": False, "merges": [["热", "a"], ["a", "热"]]}
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DataError, match=r"(?s)transformers disagrees.*--weights-only"):
        check_transformers_agreement(tmp_path)


def test_texts_of_a_vocabulary_hold_overlaps_runs_and_literal_entries():
    texts = set(texts_of_vocabulary(["a", "b", "ab", "bc"], ["<0x41>"]))
    assert {"a", "ab", "abc", "``", "？" * 33} <= texts
    assert any("<0x41>" in text for text in texts)
    assert texts == set(texts_of_vocabulary(["a", "b", "ab", "bc"], ["<0x41>"]))


def extended(real_data, pick):
    """LLaMA's vocabulary and more pieces of equal score, as naive extension makes it."""
    proto = pb2.ModelProto.FromString((real_data / "llama2_tokenizer.model").read_bytes())
    other = pb2.ModelProto.FromString((real_data / "chinese_sp.model").read_bytes())
    known = {piece.piece for piece in proto.pieces}
    new = [p.piece for p in other.pieces if p.type == p.NORMAL and p.piece not in known]
    for piece in pick(new):
        proto.pieces.add(piece=piece, score=0.0)
    return proto.SerializeToString()


VOCABULARIES = {
    "characters and 1000 words": lambda new: [
        *(piece for piece in new if len(piece) == 1),
        *[piece for piece in new if len(piece) > 1][:1000],
    ],
    "characters": lambda new: [piece for piece in new if len(piece) == 1],
    "characters and 3000 words": lambda new: [
        *(piece for piece in new if len(piece) == 1),
        *[piece for piece in new if len(piece) > 1][:3000],
    ],
    "first 7408, some characters missing": lambda new: new[:7408],
    "all": lambda new: new,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", full_but(["characters and 1000 words"], VOCABULARIES))
def test_real_extended_vocabularies_are_exact(real_data, tmp_path, name):
    tokenizer = SentencePieceTokenizer(extended(real_data, VOCABULARIES[name]))
    save_tokenizer(tokenizer, tmp_path)
    check_transformers_agreement(tmp_path)
    lines = (real_data / "fever.txt").read_text(encoding="utf-8").split("\n")
    check_transformers_agreement(tmp_path, lines)
    proto = pb2.ModelProto.FromString(tokenizer.model_bytes)
    assert len(export_bpe(proto).merges) < 32000
