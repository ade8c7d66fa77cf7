"""What we save is what transformers reads, id for id; any difference is an error."""

import json

import pytest
from transformers import AutoTokenizer

from megatron_chimed.errors import ConfigError, DataError
from megatron_chimed.tokenizer import (
    SentencePieceTokenizer,
    check_transformers_agreement,
    load_tokenizer,
)
from megatron_chimed.tokenizer.saving import save_tokenizer
from tests.unit.tokenizer.samples import TEXTS, train_model, train_unigram_model

MODELS = {
    "bpe": train_model,
    "unigram": train_unigram_model,
    "identity": lambda: train_unigram_model(normalization_rule_name="identity"),
    "symbols": lambda: train_unigram_model(user_defined_symbols=["[sep]", "<mask>"]),
}


@pytest.fixture(params=MODELS)
def saved(request, tmp_path):
    model = MODELS[request.param]()
    size = SentencePieceTokenizer(model).model_size
    tokenizer = SentencePieceTokenizer(model, {"<human>": size, "<bot>": size + 1})
    save_tokenizer(tokenizer, tmp_path)
    return tmp_path, tokenizer


def test_a_saved_folder_loads_as_the_same_tokenizer(saved):
    folder, tokenizer = saved
    again = load_tokenizer(folder)
    assert again.identity == tokenizer.identity
    assert again.special == tokenizer.special
    assert again.added_tokens == tokenizer.added_tokens
    assert (folder / "tokenizer.model").read_bytes() == tokenizer.model_bytes


def test_transformers_agrees_on_the_fixed_texts(saved):
    folder, _ = saved
    check_transformers_agreement(folder)
    check_transformers_agreement(folder, ["a[sep]b <mask> c", "[sep]", " [sep] "])


def test_transformers_agrees_beside_a_llama_config(saved):
    """An export holds one, and it decides which class AutoTokenizer takes."""
    folder, _ = saved
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    check_transformers_agreement(folder)


def test_transformers_has_the_special_ids_and_puts_bos_in_front(saved):
    folder, tokenizer = saved
    theirs = AutoTokenizer.from_pretrained(folder)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (tokenizer.bos_id, tokenizer.eos_id)
    assert theirs.unk_token_id == tokenizer.unk_id and theirs.pad_token_id is None
    assert len(theirs) == tokenizer.vocab_size
    assert theirs("发热")["input_ids"] == [tokenizer.bos_id, *tokenizer.encode("发热")]


def test_a_difference_is_an_error_with_the_text_and_both_id_lists(tmp_path):
    tokenizer = SentencePieceTokenizer(train_model())
    save_tokenizer(tokenizer, tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["normalizer"]["normalizers"].pop(0)  # the dummy prefix
    path.write_text(json.dumps(content), encoding="utf-8")
    expected, found = tokenizer.encode("a"), tokenizer.encode("a")[1:] or [tokenizer.find("a")]
    with pytest.raises(DataError) as caught:
        check_transformers_agreement(tmp_path)
    assert "disagrees with our tokenizer on 'a'" in str(caught.value)
    assert f"{expected}, transformers {found}" in str(caught.value)


def test_transformers_own_conversion_differs_so_the_check_can_fail(tmp_path):
    """Why tokenizer.json is ours: without it a leading space is lost."""
    save_tokenizer(SentencePieceTokenizer(train_model()), tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["tokenizer_class"] = "LlamaTokenizer"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="transformers disagrees"):
        check_transformers_agreement(tmp_path, TEXTS[:5])


def test_a_model_that_transformers_cannot_read_is_refused(tmp_path):
    tokenizer = SentencePieceTokenizer(train_unigram_model(model_type="char"))
    with pytest.raises(ConfigError, match="neither BPE nor unigram"):
        save_tokenizer(tokenizer, tmp_path)


@pytest.mark.slow
def test_a_real_model_agrees_with_transformers_on_real_text(real_data, tmp_path):
    model = (real_data / "llama2_tokenizer.model").read_bytes()
    size = SentencePieceTokenizer(model).model_size
    save_tokenizer(SentencePieceTokenizer(model, {"<human>": size, "<bot>": size + 1}), tmp_path)
    check_transformers_agreement(tmp_path)
    lines = (real_data / "fever.txt").read_text(encoding="utf-8").split("\n")
    check_transformers_agreement(tmp_path, lines)


def test_a_real_unigram_model_is_refused_for_its_ties(real_data, tmp_path):
    """sentencepiece adds scores in 32 bits: equal sums in 64 bits are not equal there."""
    save_tokenizer(SentencePieceTokenizer((real_data / "chinese_sp.model").read_bytes()), tmp_path)
    with pytest.raises(DataError, match="transformers disagrees with our tokenizer"):
        check_transformers_agreement(tmp_path)
