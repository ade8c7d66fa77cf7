"""tools/inspect_dataset.py: check, view and stats, and what each refuses."""

import subprocess
import sys
from pathlib import Path

import pytest

from megatron_chimed.data.indexed import IndexedDataset
from megatron_chimed.data.preprocess import PreprocessConfig, preprocess
from megatron_chimed.errors import ConfigError, DataError
from tests.unit.tokenizer.samples import LINES, train_model
from tools import inspect_dataset

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def prefix(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(train_model())
    (tmp_path / "corpus.txt").write_text("\n".join(LINES), encoding="utf-8")
    config = PreprocessConfig(
        inputs=(str(tmp_path / "corpus.txt"),),
        tokenizer=str(tmp_path / "tokenizer.model"),
        output_prefix=str(tmp_path / "data"),
    )
    preprocess(config)
    return tmp_path / "data"


def run(*words):
    return inspect_dataset.main([str(word) for word in words])


def test_check_passes_a_sound_data_set(prefix, capsys):
    assert run("check", prefix, "--tokenizer", prefix.parent / "tokenizer.model") == 0
    out = capsys.readouterr().out
    assert "WRONG" not in out
    for what in ("index", "sha256 of data.bin", "sources", "tokenizer", "token ids", "end of"):
        assert what in out


def test_check_fails_a_changed_file(prefix, capsys):
    path = prefix.with_suffix(".bin")
    raw = bytearray(path.read_bytes())
    raw[4] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"sha256 of data\.bin: .* but the sidecar states"):
        run("check", prefix)
    assert "WRONG" in capsys.readouterr().out


def test_check_fails_with_another_tokenizer(prefix, tmp_path):
    (tmp_path / "other.model").write_bytes(train_model(399))
    with pytest.raises(DataError, match="tokenizer: .* but the data was made with"):
        run("check", prefix, "--tokenizer", tmp_path / "other.model")


def test_view_shows_tokens_with_their_ids(prefix, capsys):
    assert run("view", prefix, "--document", 1, "--count", 2) == 0
    out = capsys.readouterr().out
    title = f"document 1: {len(IndexedDataset(prefix)[1])} tokens, from {prefix.parent}/corpus.txt"
    assert title.replace(" ", "") in "".join(out.split())
    assert "document 2:" in out and "document 3:" not in out
    assert out.count("</s> 2") == 2


def test_view_shows_training_samples(prefix, capsys):
    assert run("view", prefix, "--seq-length", 16, "--sample", 3, "--count", 1) == 0
    out = capsys.readouterr().out
    assert "sample 3 of " in out and "last target: " in out


def test_stats_count_and_draw(prefix, capsys, tmp_path):
    assert run("stats", prefix, "--plot", tmp_path / "lengths.png") == 0
    out = capsys.readouterr().out
    assert "all" in out and "50%" in out and "lengths.png" in out.replace("\n", "")
    assert (tmp_path / "lengths.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["view", "--document", "5"], "has documents 0 to 4; --document 5 --count 1 leaves them"),
        (["view", "--document", "-1"], "--document -1"),
        (["view", "--count", "0"], "--count 0 leaves them"),
        (["view", "--seq-length", "16", "--sample", "-1"], "--sample is -1"),
        (["view", "--tokenizer", "nowhere"], "tokenizer 'nowhere' does not exist"),
    ],
)
def test_what_cannot_be_shown_is_a_config_error(prefix, words, message):
    with pytest.raises(ConfigError, match=message):
        run(words[0], prefix, *words[1:])


def test_samples_longer_than_the_data_are_a_data_error(prefix):
    with pytest.raises(DataError, match="one sample of seq_length 100000 takes 100001"):
        run("view", prefix, "--seq-length", 100000)


def test_view_needs_the_right_tokenizer(prefix, tmp_path):
    (tmp_path / "other.model").write_bytes(train_model(399))
    with pytest.raises(ConfigError, match="is not the tokenizer of"):
        run("view", prefix, "--tokenizer", tmp_path / "other.model")
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(ConfigError, match=r"tokenizer.model', now gone. Give it with --tokenizer"):
        run("view", prefix)
    prefix.with_suffix(".meta.json").unlink()
    with pytest.raises(ConfigError, match="names no tokenizer"):
        run("view", prefix)


def test_unknown_subcommands_are_config_errors():
    with pytest.raises(ConfigError, match="invalid choice: 'dance'"):
        run("dance", "data")
    with pytest.raises(ConfigError, match="required: check"):
        run()


def test_the_script_exits_with_the_code_of_damaged_data(prefix):
    path = prefix.with_suffix(".idx")
    path.write_bytes(path.read_bytes()[:-1])
    result = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "inspect_dataset.py"), "check", str(prefix)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
    )
    assert result.returncode == 65
    assert "data.idx, byte 18: expected" in result.stderr
    assert len(result.stderr.splitlines()) == 1
