"""Ids are sentencepiece's, split at added tokens, and decode to the original text."""

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_chimed.errors import ConfigError, DataError
from megatron_chimed.tokenizer import SentencePieceTokenizer, load_tokenizer
from tests.unit.tokenizer.samples import LINES, TEXTS, train_model

MODEL = train_model()
PLAIN = SentencePieceTokenizer(MODEL)
SIZE = PLAIN.model_size
CHAT = SentencePieceTokenizer(MODEL, {"<human>": SIZE, "<bot>": SIZE + 1})
PROCESSOR = sentencepiece.SentencePieceProcessor(model_proto=MODEL)


@pytest.mark.parametrize("text", [*TEXTS, *LINES])
def test_ids_without_added_tokens_are_those_of_sentencepiece(text):
    assert PLAIN.encode(text) == PROCESSOR.encode(text)
    assert CHAT.encode(text) == PROCESSOR.encode(text)


def test_text_is_cut_at_added_tokens_and_each_piece_gets_its_dummy_prefix():
    expected = [SIZE, *PROCESSOR.encode(":发热？\n"), SIZE + 1, *PROCESSOR.encode(":")]
    assert CHAT.encode("<human>:发热？\n<bot>:") == expected
    assert CHAT.encode("<bot><bot>") == [SIZE + 1, SIZE + 1]


def test_the_longest_added_token_wins():
    tokenizer = SentencePieceTokenizer(MODEL, {"<a>": SIZE, "<a>b": SIZE + 1})
    assert tokenizer.encode("<a>b") == [SIZE + 1]
    assert tokenizer.encode("<a><a>b<a>") == [SIZE, SIZE + 1, SIZE]


def test_added_tokens_are_literal_not_patterns():
    tokenizer = SentencePieceTokenizer(MODEL, {"[human]": SIZE})
    assert SIZE not in tokenizer.encode("h u m a n")
    assert tokenizer.encode("[human]") == [SIZE]


def test_batches_give_the_same_ids_as_single_texts():
    texts = [*TEXTS, "<human>:a<bot>", *LINES]
    assert CHAT.encode_batch(texts) == [CHAT.encode(text) for text in texts]
    assert CHAT.encode_batch([]) == []


@pytest.mark.parametrize("text", [*TEXTS, *LINES, "<human>:发热 <bot>  : 好\n<bot>", " <bot> "])
def test_decoding_gives_the_text_back(text):
    assert CHAT.decode(CHAT.encode(text)) == text


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.sampled_from(["<human>", "<bot>", "<bo", "发热", " ", "  ", "\n"]),
            # The low line is sentencepiece's own spelling of a space.
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581")),
        )
    ).map("".join)
)
def test_decoding_gives_any_text_back(text):
    assert CHAT.decode(CHAT.encode(text)) == text


def test_control_tokens_are_never_recognised_in_text():
    ids = PLAIN.encode("a</s><s>b<unk>")
    assert not {PLAIN.bos_id, PLAIN.eos_id, PLAIN.unk_id} & set(ids)


def test_decoding_drops_control_tokens_and_restarts_the_text_behind_them():
    ids = [PLAIN.bos_id, *PLAIN.encode("发热"), PLAIN.eos_id, *PLAIN.encode(" 咳嗽")]
    assert PLAIN.decode(ids) == "发热 咳嗽"
    assert PLAIN.decode(ids, keep_special=True) == "<s>发热</s> 咳嗽"


def test_decoding_takes_arrays_and_spells_broken_bytes_as_replacement_characters():
    first_byte = PLAIN.encode("龘")[1]
    assert PLAIN.token(first_byte) == "<0xE9>"
    assert PLAIN.decode(iter([first_byte])) == "\ufffd"


@pytest.mark.parametrize("index", [-1, SIZE + 2, 10**9])
def test_an_id_outside_the_vocabulary_is_an_error_with_both_numbers(index):
    with pytest.raises(
        DataError, match=f"token id {index} is outside the vocabulary of {SIZE + 2}"
    ):
        CHAT.decode([index])
    with pytest.raises(DataError, match=f"token id {index} "):
        CHAT.token(index)


def test_a_lone_surrogate_is_an_error_with_its_place():
    with pytest.raises(DataError, match=r"lone surrogate U\+D800 at character 2"):
        PLAIN.encode("ab\ud800")


def test_special_ids_and_sizes():
    assert (PLAIN.unk_id, PLAIN.bos_id, PLAIN.eos_id, PLAIN.pad_id) == (0, 1, 2, None)
    assert (PLAIN.vocab_size, CHAT.vocab_size, CHAT.model_size) == (SIZE, SIZE + 2, SIZE)
    assert CHAT.find("<bot>") == SIZE + 1
    assert CHAT.find("</s>") == 2
    assert CHAT.find("no such piece") is None
    assert CHAT.is_control(0) and CHAT.is_control(2)
    assert not CHAT.is_control(SIZE) and not CHAT.is_control(300)


def test_identity_changes_with_the_model_and_with_the_added_tokens():
    swapped = SentencePieceTokenizer(MODEL, {"<human>": SIZE + 1, "<bot>": SIZE})
    other = SentencePieceTokenizer(train_model(399))
    identities = {t.identity for t in (PLAIN, CHAT, swapped, other)}
    assert len(identities) == 4
    assert (
        SentencePieceTokenizer(MODEL, {"<bot>": SIZE + 1, "<human>": SIZE}).identity
        == CHAT.identity
    )


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ({"<a>": SIZE + 1}, r"must follow the model's \d+ pieces"),
        ({"<a>": SIZE, "<b>": SIZE}, "without gaps or repetitions"),
        ({"<a>": 300}, "but the model's piece 300 is"),
        ({"<a>": -1}, "has id -1"),
        ({"": SIZE}, "is the empty text"),
    ],
)
def test_added_tokens_that_do_not_fit_the_model_are_refused(added, message):
    with pytest.raises(ConfigError, match=message):
        SentencePieceTokenizer(MODEL, added)


@pytest.mark.parametrize("model", [b"", b"hello world", MODEL[:1000]])
def test_bytes_that_are_no_model_are_refused(model):
    with pytest.raises(ConfigError, match="sentencepiece model|holds no pieces"):
        SentencePieceTokenizer(model, source="x.model")


@pytest.mark.parametrize("name", ["llama2_tokenizer.model", "chinese_sp.model"])
def test_ids_of_real_text_are_those_of_sentencepiece(real_data, name):
    tokenizer = load_tokenizer(real_data / name)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(real_data / name))
    lines = (real_data / "fever.txt").read_text(encoding="utf-8").split("\n")
    assert len(lines) > 900
    assert tokenizer.encode_batch(lines) == processor.encode(lines)
    if name.startswith("llama"):  # the other normalises, so its text does not come back
        assert [tokenizer.decode(ids) for ids in tokenizer.encode_batch(lines)] == lines


def test_a_vocabulary_of_ziyas_shape_has_ziyas_ids(real_data):
    """39,408 pieces, made as the authors did: LLaMA's, extended with Chinese ones."""
    from sentencepiece import sentencepiece_model_pb2 as pb2

    model = pb2.ModelProto.FromString((real_data / "llama2_tokenizer.model").read_bytes())
    other = pb2.ModelProto.FromString((real_data / "chinese_sp.model").read_bytes())
    known = {piece.piece for piece in model.pieces}
    new = [piece.piece for piece in other.pieces if piece.type == 1 and piece.piece not in known]
    for piece in new[: 39408 - len(model.pieces)]:
        model.pieces.add(piece=piece, score=0.0)
    tokenizer = SentencePieceTokenizer(
        model.SerializeToString(), {"<human>": 39408, "<bot>": 39409}
    )
    assert tokenizer.vocab_size == 39410
    text = "<human>:发热怎么办？\n<bot>:多喝水。"
    ids = tokenizer.encode(text)
    assert ids[0] == 39408 and ids.count(39409) == 1
    assert tokenizer.decode(ids) == text
