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


def test_a_vocabulary_that_does_not_fit_is_refused_with_those_that_do(tmp_path):
    with pytest.raises(ConfigError) as small:
        train(tmp_path / "t", vocab_size=100)
    told = "The smallest vocabulary is 357: 3 control pieces, 256 bytes and 98 characters"
    assert f"a vocabulary of 100 does not fit 5 lines. {told}: set --vocab-size" in str(small.value)
    assert "a lower --character-coverage than 1 (down to 0.98)" in str(small.value)
    with pytest.raises(ConfigError) as large:
        train(tmp_path / "t", vocab_size=100_000)
    assert told in str(large.value) and "the largest that this text gives is 599" in str(
        large.value
    )
    for error in (small, large):
        assert "INTERNAL" not in str(error.value) and ".cc" not in str(error.value)
    assert list(tmp_path.iterdir()) == []
    assert train(tmp_path / "least", vocab_size=357).model_size == 357
    assert train(tmp_path / "most", vocab_size=599).model_size == 599


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 0}, "--vocab-size is 0: set it from 1 to 1000000"),
        ({"vocab_size": 10**12}, "--vocab-size is 1000000000000"),
        ({"added_tokens": ("<s>",)}, "added token <s> is a control piece"),
        ({"character_coverage": 0.5}, "--character-coverage is 0.5: set it from 0.98 to 1"),
        ({"character_coverage": float("nan")}, "--character-coverage is nan"),
    ],
)
def test_values_out_of_range_are_named(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        train(tmp_path / "t", **options)


def test_repeated_added_tokens_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"added tokens repeat: \['<a>', '<a>'\]"):
        train(tmp_path / "t", added_tokens=("<a>", "<a>"))


def test_blank_text_is_refused(tmp_path):
    with pytest.raises(DataError, match="no text to train a tokenizer on"):
        train_tokenizer(["", " \n "], tmp_path / "t", vocab_size=400)


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "precious").write_text("x")
    with pytest.raises(OutputError, match="exists already"):
        train(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
