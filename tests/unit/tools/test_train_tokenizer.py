"""tools/train_tokenizer.py: a folder that loads, or a message and no folder."""

import json

import pytest

from megatron_chimed.errors import ConfigError, DataError
from megatron_chimed.tokenizer import load_tokenizer
from tests.unit.tokenizer.samples import LINES
from tools import train_tokenizer


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"body": line}) + "\n" for line in LINES))
    return path


def run(corpus, *more):
    output = ["--output", str(corpus.parent / "tokenizer")]
    return train_tokenizer.main(["--input", str(corpus), *output, "--text-key", "body", *more])


def test_it_writes_a_folder_that_loads(corpus, capsys):
    tags = ["--added-token", "<human>", "--added-token", "<bot>"]
    assert run(corpus, "--vocab-size", "400", "--character-coverage", "1.0", *tags) == 0
    tokenizer = load_tokenizer(corpus.parent / "tokenizer")
    assert tokenizer.added_tokens == {"<human>": 400, "<bot>": 401}
    assert tokenizer.decode(tokenizer.encode(LINES[0])) == LINES[0]
    assert "402 ids, transformers agrees on them" in capsys.readouterr().out


def test_what_cannot_be_trained_is_an_error(corpus):
    with pytest.raises(ConfigError, match="a vocabulary of 100 does not fit"):
        run(corpus, "--vocab-size", "100")
    with pytest.raises(ConfigError, match="required: --input, --output, --vocab-size"):
        train_tokenizer.main([])
    with pytest.raises(DataError, match=r"corpus\.jsonl:1:0 .* no key 'body'"):
        corpus.write_text('{"text": "a"}\n')
        run(corpus, "--vocab-size", "400")
    assert not (corpus.parent / "tokenizer").exists()


def test_bad_rows_are_skipped_within_the_rate_as_in_preprocessing(corpus, capsys):
    with open(corpus, "a") as stream:
        stream.write('{"body": 1}\n{"body": "' + "x" * 9000 + '"}\n')
    flags = ["--vocab-size", "400", "--max-row-bytes", "8000"]
    with pytest.raises(DataError, match=rf"corpus\.jsonl:{len(LINES) + 1}:.*2 of {len(LINES) + 2}"):
        run(corpus, *flags)
    assert run(corpus, *flags, "--max-bad-rate", "0.9") == 0
    listed = (corpus.parent / "tokenizer.quarantine.jsonl").read_text().splitlines()
    assert [json.loads(row)["line"] for row in listed] == [len(LINES) + 1, len(LINES) + 2]
    assert "2 malformed rows are listed in" in capsys.readouterr().err


def test_columns_and_encoding_are_those_of_preprocessing(tmp_path):
    path = tmp_path / "x.csv"
    rows = "".join(f"{number},{line.replace(',', ' ')}\n" for number, line in enumerate(LINES))
    path.write_text(f"编号,正文\n{rows}".replace('"', ""), "gb18030")
    words = ["--input", str(path), "--vocab-size", "400", "--encoding", "gb18030"]
    output = ["--output", str(tmp_path / "tokenizer")]
    assert train_tokenizer.main([*words, *output, "--columns", "text=正文"]) == 0


def test_byte_level_bpe_is_another_kind(corpus, capsys):
    flags = ["--kind", "byte_bpe", "--vocab-size", "300", "--added-token", "<think>"]
    assert run(corpus, *flags) == 0
    tokenizer = load_tokenizer(corpus.parent / "tokenizer")
    assert tokenizer.find("<think>") == 304 and tokenizer.find("<|im_end|>") == 302
    assert "305 ids, transformers agrees on them" in capsys.readouterr().out
    assert run(corpus, *flags, "--overwrite") == 0
    with pytest.raises(ConfigError, match="--character-coverage is for --kind sentencepiece"):
        run(corpus, *flags, "--character-coverage", "1.0")
