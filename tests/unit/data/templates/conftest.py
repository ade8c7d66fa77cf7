"""Tokenizers of model families, once for each file of tests."""

import json
import shutil

import pytest

from megatron_chimed.tokenizer import SentencePieceTokenizer
from tests.unit.data.templates.families import MISTRAL_TOKENS, Family, chat_template_of
from tests.unit.tokenizer.samples import train_unigram_model

NEWER_THAN_QWEN2 = ("<tool_response>", "</tool_response>", "<think>", "</think>")


@pytest.fixture(scope="module")
def qwen3(real_data):
    folder = real_data / "tokenizers/qwen3"
    return Family(folder, chat_template_of(folder), eos_token="<|im_end|>")


@pytest.fixture(scope="module")
def llama3(real_data):
    folder = real_data / "tokenizers/llama3"
    special = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    return Family(folder, chat_template_of(folder), **special)


@pytest.fixture(scope="module")
def qwen2(real_data, tmp_path_factory):
    """Qwen3's vocabulary without the tokens that Qwen2.5 does not have."""
    source, folder = real_data / "tokenizers/qwen3", tmp_path_factory.mktemp("qwen2")
    content = json.loads((source / "tokenizer.json").read_text("utf-8"))
    kept = [t for t in content["added_tokens"] if t["content"] not in NEWER_THAN_QWEN2]
    content["added_tokens"] = kept
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    shutil.copy(source / "tokenizer_config.json", folder)
    return Family(folder, None, eos_token="<|im_end|>")


@pytest.fixture(scope="module")
def mistral():
    """A sentencepiece model with Mistral's control tokens."""
    return SentencePieceTokenizer(train_unigram_model(control_symbols=list(MISTRAL_TOKENS)))
