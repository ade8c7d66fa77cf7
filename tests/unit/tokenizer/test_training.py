"""A trained tokenizer is LLaMA-like, reproducible and complete or absent."""

import pytest

from megatron_chimed.errors import ConfigError, DataError, OutputError
from megatron_chimed.tokenizer import load_tokenizer, train_tokenizer
from tests.unit.tokenizer.samples import LINES


def train(folder, **options):
    settings = {"vocab_size": 400, "character_coverage": 1.0, **options}
    return train_tokenizer(LINES, folder, **settings)


def test_the_same_texts_give_the_same_bytes(tmp_path):
    train(tmp_path / "a", added_tokens=("<human>", "<bot>"))
    train(tmp_path / "b", added_tokens=("<human>", "<bot>"))
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert "tokenizer.model" in names and "tokenizer.json" in names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_it_is_llama_like(tmp_path):
    tokenizer = train(tmp_path / "t", added_tokens=("<human>", "<bot>"))
    assert (tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    assert tokenizer.pad_id is None
    assert tokenizer.model_size == 400
    assert tokenizer.added_tokens == {"<human>": 400, "<bot>": 401}
    assert [tokenizer.token(i) for i in tokenizer.encode("龘")] == [
        "\u2581", "<0xE9>", "<0xBE>", "<0x98>"
    ]  # fmt: skip
    digits = [tokenizer.token(i) for i in tokenizer.encode("120")][-3:]
    assert digits == ["1", "2", "0"]
    assert tokenizer.decode(tokenizer.encode("ﬁ ① Ａ")) == "ﬁ ① Ａ"  # not normalised
    assert not tokenizer.special.add_bos
    assert load_tokenizer(tmp_path / "t").identity == tokenizer.identity


@pytest.mark.parametrize("vocab_size", [100, 100_000])
def test_a_vocabulary_that_does_not_fit_the_text_is_refused_and_leaves_nothing(
    tmp_path, vocab_size
):
    with pytest.raises(ConfigError, match=rf"cannot train {vocab_size} pieces on 5 lines"):
        train(tmp_path / "t", vocab_size=vocab_size)
    assert list(tmp_path.iterdir()) == []


def test_repeated_added_tokens_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"added tokens repeat: \['<a>', '<a>'\]"):
        train(tmp_path / "t", added_tokens=("<a>", "<a>"))


def test_blank_text_is_refused(tmp_path):
    with pytest.raises(DataError, match="no text to train a tokenizer on"):
        train_tokenizer(["", " \n "], tmp_path / "t", vocab_size=400)


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "precious").write_text("x")
    with pytest.raises(OutputError, match="exists, and nothing is written over unasked"):
        train(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
