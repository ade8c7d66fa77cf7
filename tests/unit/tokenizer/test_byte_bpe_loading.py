"""Folders of byte-level BPE: what decides special ids, and which files are refused."""

import pytest

from megatron_chimed.errors import ConfigError, DataError
from megatron_chimed.tokenizer import (
    SentencePieceTokenizer,
    load_tokenizer,
)
from tests.unit.tokenizer.byte_bpe import toy, toy_json, write_folder
from tests.unit.tokenizer.samples import train_model


def without(content, *path):
    *parents, last = path
    inner = content
    for key in parents:
        inner = inner[key]
    del inner[last]
    return content


def edited(**changes):
    return toy_json() | changes


def vocabulary(**changes):
    return toy_json(vocab=toy_json()["model"]["vocab"] | changes)


def added(*entries):
    return edited(added_tokens=[*toy_json()["added_tokens"], *entries])


def entry(index, content, **flags):
    return {"id": index, "content": content, "special": True, "normalized": False} | flags


LAST_STEP = {"type": "ByteLevel", "add_prefix_space": True}
REFUSED = {
    "wordpiece": (toy_json(type="WordPiece"), r"holds a model of type 'WordPiece'; known are byte"),
    "unigram": (edited(model={"type": "Unigram", "vocab": []}), "of type 'Unigram'; known are"),
    "no model": (without(toy_json(), "model"), "has no model"),
    "no merges": (without(toy_json(), "model", "merges"), "without vocab or merges"),
    "llama": (toy_json(byte_fallback=True), "byte fallback.*only its tokenizer.model"),
    "dropout": (toy_json(dropout=0.1), "with dropout 0.1"),
    "suffix": (toy_json(end_of_word_suffix="</w>"), "end_of_word_suffix '</w>'"),
    "characters": (edited(pre_tokenizer={"type": "Whitespace"}), "not over bytes"),
    "no steps": (edited(pre_tokenizer=None), "not over bytes"),
    "prefix": (edited(pre_tokenizer=LAST_STEP), "puts a space before each text"),
    "lowercase": (edited(normalizer={"type": "Lowercase"}), "normalizes with 'Lowercase'"),
    "gap": (added(entry(407, "<a>")), "no token has id 406, although ids go up to 407"),
    "two texts": (added(entry(5, "<a>")), "id 5 is both"),
    "two ids": (vocabulary(**{"<think>": 399}), "id 399 is both"),
    "moved": (added(entry(406, "a")), "added token 'a' has id 406, but .* in the vocabulary"),
    "not an id": (vocabulary(a="1"), "an id of the vocabulary is no integer"),
    "no byte": (vocabulary(发=406), "the character '发', which spells no byte"),
    "merge": (toy_json(merges=[["a", "t"], ["a", "发"]]), "merge 1 .'a', '发'. is not of the"),
    "no pair": (toy_json(merges=["a b c"]), "merge 0 is 'a b c', not a pair"),
    "token": (added({"id": "x", "content": "<a>"}), "added token '<a>' with id 'x'"),
    "tokens": (edited(added_tokens={"<a>": 1}), "added_tokens is not a list"),
    "odd steps": (edited(pre_tokenizer={"type": "Sequence", "pretokenizers": 5}), "not over bytes"),
    "odd token": (added({"id": 406, "content": ["<a>"]}), "with id 406"),
    "list": ([], "holds a list, not a JSON object"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_another_kind_of_file_is_refused_by_name(tmp_path, name):
    content, message = REFUSED[name]
    with pytest.raises(DataError, match=message) as caught:
        toy(tmp_path, content)
    assert "tokenizer.json" in str(caught.value) and caught.value.exit_code == 65


def test_a_damaged_file_is_refused(tmp_path):
    write_folder(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"tokenizer\.json is not valid JSON"):
        load_tokenizer(tmp_path)
    with pytest.raises(DataError, match=r"tokenizer\.json is not valid JSON"):
        load_tokenizer(path)


def test_a_missing_byte_is_refused(tmp_path):
    content = toy_json()
    vocab = content["model"]["vocab"]
    spare = max(vocab, key=lambda text: vocab[text])
    content["model"] |= {"merges": [], "vocab": {t: i for t, i in vocab.items() if t != spare}}
    content["model"]["vocab"]["aa"] = content["model"]["vocab"].pop("a")
    content["model"]["vocab"]["bb"] = vocab[spare]
    with pytest.raises(DataError, match="no entry for 1 of the 243 bytes of UTF-8"):
        toy(tmp_path, content)


def test_text_that_can_spell_a_token_is_refused(tmp_path):
    """An entry of the vocabulary that merges reach, marked as structure too."""
    index = toy_json()["model"]["vocab"]["three"]
    with pytest.raises(DataError, match="text can spell the added token 'three'"):
        toy(tmp_path, added(entry(index, "three")))


def test_what_the_library_cannot_read_is_our_error(tmp_path):
    content = edited(pre_tokenizer={"type": "Sequence", "pretokenizers": [{"type": "Odd"}]})
    content["pre_tokenizer"]["pretokenizers"].append(LAST_STEP | {"add_prefix_space": False})
    with pytest.raises(DataError, match=r"cannot be read by tokenizers [\d.]+:"):
        toy(tmp_path, content).encode("a")


def test_sentencepiece_wins_where_a_folder_has_both(tmp_path):
    """Its tokenizer.json is a conversion, which may give other ids."""
    write_folder(tmp_path, {"model": {"type": "Unigram"}}, tokenizer_config=None)
    with pytest.raises(DataError):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(train_model())
    assert isinstance(load_tokenizer(tmp_path), SentencePieceTokenizer)


def test_the_file_alone_has_the_special_ids_of_known_names(tmp_path):
    write_folder(tmp_path)
    alone = load_tokenizer(tmp_path / "tokenizer.json")
    assert (alone.bos_id, alone.eos_id, alone.pad_id) == (None, 400, None)
    assert alone.stop_ids == (400, 402)
    llama = added(entry(406, "<|begin_of_text|>"))
    other = write_folder(tmp_path / "b", llama) / "tokenizer.json"
    assert load_tokenizer(other).bos_id == 406
    assert load_tokenizer(tmp_path / "b").bos_id is None  # the folder names none


def test_a_folder_that_names_no_end_is_refused(tmp_path):
    content = toy_json()
    content["added_tokens"] = [entry(400, "<s>")]
    with pytest.raises(ConfigError, match="does not say what ends a sequence"):
        toy(tmp_path, content, tokenizer_config={})
    ends = {"tokenizer_config": {}, "generation_config": {"eos_token_id": 400}}
    assert toy(tmp_path, content, **ends).eos_id == 400


@pytest.mark.parametrize("name", ["bos_token", "eos_token", "pad_token"])
def test_an_ordinary_entry_cannot_be_structure(tmp_path, name):
    config = {"eos_token": "<|im_end|>"} | {name: "three"}
    with pytest.raises(ConfigError, match=f"{name} 'three' is an ordinary entry"):
        toy(tmp_path, tokenizer_config=config)


def test_bos_is_prepended_by_flag_or_in_the_file(tmp_path):
    content = added(entry(406, "<|begin_of_text|>"))
    config = {"eos_token": "<|im_end|>", "bos_token": "<|begin_of_text|>"}
    assert not toy(tmp_path, content, tokenizer_config=config).special.add_bos
    flagged = config | {"add_bos_token": True}
    assert toy(tmp_path, content, tokenizer_config=flagged).special.add_bos
    single = [{"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 0}}, {"Sequence": {}}]
    step = {"type": "TemplateProcessing", "single": single}
    content["post_processor"] = {"type": "Sequence", "processors": [{"type": "ByteLevel"}, step]}
    assert toy(tmp_path, content, tokenizer_config=config).special.add_bos


@pytest.mark.parametrize("value", [999, [400, 999], "x", [True], -1])
def test_ends_of_another_model_are_refused(tmp_path, value):
    with pytest.raises(DataError, match=r"generation_config\.json: eos_token_id is .* 406 ids"):
        toy(tmp_path, generation_config={"eos_token_id": value})


def test_files_that_contradict_each_other_are_refused(tmp_path):
    for files, message in (
        ({"added_tokens": {"<|im_end|>": 405}}, "'<|im_end|>' has id 405 in added_tokens.json and"),
        ({"special_tokens_map": {"eos_token": "<|endoftext|>"}}, "eos_token is '<.im_end.>' in"),
        ({"tokenizer_config": {"eos_token": "</s>"}}, "'</s>' is neither a piece of tokenizer"),
    ):
        folder = tmp_path / message[:9].strip("'<|")
        with pytest.raises(ConfigError, match=message.replace("|", r"\|")):
            toy(folder, **files)


def test_tokens_that_only_the_configuration_adds_count(tmp_path):
    decoder = {"406": {"content": "<|pad_2|>", "special": True}}
    config = {"eos_token": "<|im_end|>", "added_tokens_decoder": decoder}
    tokenizer = toy(tmp_path, tokenizer_config=config)
    assert tokenizer.vocab_size == 407 and tokenizer.is_special(406)
    assert not any(map(tokenizer.is_control, tokenizer.encode("<|pad_2|>")))
    assert tokenizer.identity != toy(tmp_path / "b").identity


def test_words_added_to_the_vocabulary_are_recognised(tmp_path):
    """As DeepSeek's: without them, honest text would get other ids than in transformers."""
    content = added(entry(406, "高血压", special=False, normalized=True))
    tokenizer = toy(tmp_path, content)
    assert tokenizer.encode("a高血压") == [*tokenizer.encode("a"), 406]
    assert tokenizer.decode([406]) == "高血压" and not tokenizer.is_control(406)
    assert tokenizer.recognised == ["高血压"]
    assert tokenizer.fast == "tokenizers: words are added to the vocabulary"
