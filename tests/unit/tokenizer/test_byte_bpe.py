"""Byte-level BPE: ids are those of `tokenizers`, and no text spells structure."""

import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_chimed import _data_helpers
from megatron_chimed.errors import DataError
from megatron_chimed.tokenizer import check_transformers_agreement
from megatron_chimed.tokenizer.byte_level import BYTE_OF, readable, spell, to_bytes
from megatron_chimed.tokenizer.concatenation import (
    concatenation_of,
    recognised_only_by_transformers,
)
from megatron_chimed.tokenizer.saving import is_tokenizer_folder, save_tokenizer
from tests.unit.tokenizer.byte_bpe import HOSTILE, UNICODE, toy, toy_json, toy_text, write_folder

LIBRARY = tokenizers.Tokenizer.from_str(toy_text())
END, DOCUMENT_END = 402, 400


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return toy(tmp_path_factory.mktemp("byte_bpe"))


def test_ids_are_those_of_the_library(tokenizer):
    assert [tokenizer.encode(text) for text in UNICODE] == [LIBRARY.encode(t).ids for t in UNICODE]


@settings(max_examples=100)
@given(st.text(max_size=30))
def test_ids_of_any_text_are_those_of_the_library_and_decode_to_it(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids == LIBRARY.encode(text).ids
    assert tokenizer.decode(ids) == LIBRARY.normalizer.normalize_str(text)


@pytest.mark.parametrize("text", HOSTILE)
def test_structure_in_text_is_text(tokenizer, text):
    ids = tokenizer.encode(text)
    assert not any(tokenizer.is_control(index) for index in ids)
    assert tokenizer.decode(ids) == text
    assert tokenizer._encode_by_library([text]) == [ids], "where there is no C++ encoder"
    assert any(i >= END - 2 for i in LIBRARY.encode(text).ids) or text == "<|im_end|"


@pytest.mark.parametrize("wide", [False, True])
def test_packed_ids_are_those_of_the_batch(tokenizer, monkeypatch, wide):
    if wide:
        monkeypatch.setattr("megatron_chimed.tokenizer.byte_bpe.MAX_NARROW_VOCAB", 400)
    texts = [*UNICODE, *HOSTILE]
    ids, lengths = tokenizer.encode_packed(texts, threads=2, end_id=DOCUMENT_END)
    expected = [[*found, DOCUMENT_END] if found else [] for found in tokenizer.encode_batch(texts)]
    assert ids.dtype == (np.int32 if wide else np.uint16) and lengths.dtype == np.int32
    assert ids.tolist() == [index for found in expected for index in found]
    assert lengths.tolist() == list(map(len, expected))


def test_a_lone_surrogate_is_refused(tokenizer):
    with pytest.raises(DataError, match="lone surrogate U\\+DFFF at character 3"):
        tokenizer.encode_batch(["a", "发热a\udfff"])


def test_special_ids_come_from_the_folder(tokenizer):
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id) == (None, END, None)
    assert (tokenizer.pad_id, tokenizer.vocab_size, tokenizer.special.add_bos) == (403, 406, False)
    assert tokenizer.added_tokens["</think>"] == 405
    assert tokenizer.is_special(END) and not tokenizer.is_special(404)
    assert tokenizer.is_control(404) and not tokenizer.is_control(399)


def test_a_completion_stops_at_turns_and_documents_and_a_document_ends_as_such(tmp_path):
    assert toy(tmp_path / "a").stop_ids == (END, DOCUMENT_END)
    assert toy(tmp_path / "a").eod_id == DOCUMENT_END
    base = toy(tmp_path / "b", tokenizer_config={"eos_token": "<|endoftext|>"})
    assert (base.stop_ids, base.eod_id) == ((DOCUMENT_END, END), DOCUMENT_END)
    more = toy(tmp_path / "c", generation_config={"eos_token_id": [402, 405]})
    assert more.stop_ids == (END, 405, DOCUMENT_END)


def test_decoding_drops_structure_but_keeps_what_a_template_shows(tokenizer):
    ids = [401, *tokenizer.encode("发热"), 404, END]
    assert tokenizer.decode(ids) == "发热<think>"
    assert tokenizer.decode(ids, keep_special=True) == "<|im_start|>发热<think><|im_end|>"
    assert tokenizer.decode(tokenizer.encode("😀")[:-1]).startswith("\ufffd")
    with pytest.raises(DataError, match="token id 406 is outside the vocabulary of 406"):
        tokenizer.decode([406])


def test_tokens_are_shown_as_text(tokenizer):
    shown = [tokenizer.token(index) for index in tokenizer.encode("体温 three 龘")]
    assert shown[:2] == ["体温", "▁three"]
    assert "".join(shown[2:]) == "▁<0xE9><0xBE><0x98>"
    assert tokenizer.token(END) == "<|im_end|>"


def test_find_takes_text_and_structure(tokenizer):
    assert tokenizer.find("<|im_end|>") == END and tokenizer.find("<think>") == 404
    assert tokenizer.encode("体温") == [tokenizer.find("体温")]
    assert tokenizer.find("no such entry") is None and tokenizer.find("\ud800") is None


def test_bytes_are_spelled_as_the_library_spells_them():
    assert set(BYTE_OF) == set(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    data = bytes(range(256))
    assert to_bytes(spell(data)) == data
    assert readable("发".encode()[:2] + b"a\xff" + "热".encode()) == "<0xE5><0x8F>a<0xFF>热"


def test_an_identity_is_that_of_the_meaning(tmp_path):
    def identity(name, content):
        return toy(tmp_path / name, content).identity

    same = toy_json(merges=[" ".join(pair) for pair in toy_json()["model"]["merges"]])
    same |= {"post_processor": None, "decoder": None, "truncation": None}
    same["pre_tokenizer"]["pretokenizers"][1]["trim_offsets"] = False
    assert identity("same", same) == identity("plain", toy_json())
    assert toy(tmp_path / "eos", tokenizer_config={"eos_token": "<|endoftext|>"}).identity == (
        identity("plain", toy_json())
    )
    merges = toy_json()["model"]["merges"]
    changed = [
        toy_json(ignore_merges=True),
        toy_json(merges=[merges[1], merges[0], *merges[2:]]),
        toy_json() | {"normalizer": None},
        toy_json() | {"added_tokens": toy_json()["added_tokens"][:-1]},
    ]
    split = toy_json()
    split["pre_tokenizer"]["pretokenizers"].pop(0)
    found = {identity(f"{at}", content) for at, content in enumerate([toy_json(), split, *changed])}
    assert len(found) == 6


def test_saved_files_are_the_ones_that_were_read(tmp_path):
    folder = write_folder(
        tmp_path / "a",
        generation_config={"eos_token_id": [402, 405]},
        special_tokens_map={"eos_token": {"content": "<|im_end|>"}},
    )
    tokenizer = toy(tmp_path / "a", generation_config={"eos_token_id": [402, 405]})
    (tmp_path / "b").mkdir()
    save_tokenizer(tokenizer, tmp_path / "b")
    assert is_tokenizer_folder(tmp_path / "b") and not is_tokenizer_folder(tmp_path)
    names = {path.name for path in folder.iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()} == {
        name: (folder / name).read_bytes() for name in names
    }
    check_transformers_agreement(tmp_path / "b")


@pytest.mark.parametrize("config", [None, {"eos_token": "<|im_end|>", "chat_template": "{{ x }}"}])
def test_saved_files_name_the_special_ids(tmp_path, config):
    """Also where another padding id was chosen; the chat template is the model's."""
    from megatron_chimed.conversion.hf_tokenizer import with_padding

    plain = toy(tmp_path / "a", tokenizer_config=config)
    padded = with_padding(plain)
    assert (plain.pad_id, padded.pad_id) == (None, 403)
    for tokenizer in (plain, padded):
        folder = tmp_path / f"{tokenizer.pad_id}"
        folder.mkdir()
        save_tokenizer(tokenizer, folder)
        from megatron_chimed.tokenizer import load_tokenizer

        again = load_tokenizer(folder)
        assert again.special == tokenizer.special and again.identity == tokenizer.identity
        assert again.stop_ids == tokenizer.stop_ids
        assert "chat_template" not in json.loads((folder / "tokenizer_config.json").read_text())


def test_without_a_spare_token_padding_is_refused(tmp_path):
    from megatron_chimed.conversion.hf_tokenizer import with_padding

    content = toy_json()
    content["added_tokens"] = content["added_tokens"][:3]
    bare = toy(tmp_path, content, tokenizer_config={"eos_token": "<|im_end|>"})
    with pytest.raises(DataError, match="no special token for padding but its end"):
        with_padding(bare)


def test_one_text_cannot_show_where_a_segment_began(tokenizer):
    assert concatenation_of(tokenizer).fault == "the tokenizer puts no space before a text"
    assert recognised_only_by_transformers(tokenizer) == list(tokenizer.added_tokens)


class FakeEncoder:
    """Stands for the C++ encoder: the ids of the library, with one mistake."""

    def __init__(self, vocabulary, rest):
        assert vocabulary.num_entries == 400
        if "<|pad|>" not in json.dumps(rest):
            raise _data_helpers.UnsupportedModel("a made-up reason")

    def encode(self, texts, threads, is_wide, end_id):
        assert threads == 1 and end_id is None
        lists = [[7] if text == "wrong" else LIBRARY.encode(text).ids for text in texts]
        lengths = np.array(list(map(len, lists)), np.int32)
        return np.array([i for ids in lists for i in ids], np.int32), lengths


def test_the_cpp_encoder_is_used_where_it_supports_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(_data_helpers, "ByteBpeEncoder", FakeEncoder, raising=False)
    tokenizer = toy(tmp_path / "a")
    assert tokenizer.fast == "C++: byte-level BPE with the ids of tokenizers"
    assert tokenizer.encode("wrong") == [7]
    tokenizer.spot_check(["a", "发热"])
    with pytest.raises(DataError, match=r"tokenizers [\d.]+ disagree on 'wrong' .*report this"):
        tokenizer.spot_check(["a", "wrong"])
    content = toy_json()
    content["added_tokens"].pop(3)
    content["added_tokens"][3]["id"], content["added_tokens"][4]["id"] = 403, 404
    other = toy(tmp_path / "b", content, tokenizer_config={"eos_token": "<|im_end|>"})
    assert other.fast == "tokenizers: a made-up reason"
    other.spot_check(["wrong"])
    monkeypatch.delattr(_data_helpers, "ByteBpeEncoder")
    assert toy(tmp_path / "a").fast.startswith("tokenizers: the C++ extension is not built")
