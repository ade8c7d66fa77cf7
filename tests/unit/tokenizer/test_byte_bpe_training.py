"""A trained byte-level BPE: Qwen-like, deterministic, read by transformers alike."""

import pytest

from megatron_chimed.errors import ConfigError, DataError
from megatron_chimed.tokenizer import train_byte_bpe
from tests.unit.tokenizer.samples import LINES, TEXTS


def train(folder, **options):
    return train_byte_bpe(LINES * 3, folder, **{"vocab_size": 350, **options})


def test_a_folder_loads_with_structure_behind_the_vocabulary(tmp_path):
    tokenizer = train(tmp_path / "a", added_tokens=["<think>"])
    assert list(tokenizer.added_tokens.values()) == [350, 351, 352, 353, 354]
    assert tokenizer.added_tokens["<think>"] == 354
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (None, 350, 353)
    assert tokenizer.stop_ids == (350, 352) and not tokenizer.special.add_bos
    assert [tokenizer.decode(tokenizer.encode(text)) for text in TEXTS] == list(TEXTS)
    assert len(tokenizer.encode("2024")) == 4
    assert len(tokenizer.encode(LINES[0])) < len(LINES[0].encode()) / 2


def test_the_same_texts_give_the_same_bytes(tmp_path):
    for name in "ab":
        train(tmp_path / name)
    files = [{p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in "ab"]
    assert files[0] == files[1] and set(files[0]) == {"tokenizer.json", "tokenizer_config.json"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 255}, "--vocab-size is 255: set it from 256"),
        ({"vocab_size": 5000}, r"the largest that this text gives is \d+: set --vocab-size"),
        ({"added_tokens": ["<a>", "<a>"]}, "added tokens repeat"),
        ({"added_tokens": ["<|im_end|>"]}, "none of .* which every tokenizer of this kind has"),
    ],
)
def test_what_cannot_be_trained_is_an_error(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        train(tmp_path / "a", **options)
    assert not (tmp_path / "a").exists()


def test_blank_texts_are_an_error(tmp_path):
    with pytest.raises(DataError, match="no text to train"):
        train_byte_bpe(["", " \n"], tmp_path / "a", vocab_size=300)
