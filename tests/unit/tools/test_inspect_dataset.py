"""tools/inspect_dataset.py: its subcommands, and what each refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_chimed.data.datasets.indexed import IndexedDataset
from megatron_chimed.data.preprocessing.preprocess import PreprocessConfig, preprocess
from megatron_chimed.errors import ConfigError, DataError
from tests.unit.tokenizer.samples import LINES, train_model
from tools import inspect_dataset

ROOT = Path(__file__).resolve().parents[3]


CONVERSATIONS = [
    {"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]}
    for q, a in zip(LINES, LINES[1:], strict=False)
]
PAIRS = [
    {"conversations": [{"from": "human", "value": q}], "chosen": a, "rejected": b}
    for q, a, b in zip(LINES, LINES[1:], LINES[2:], strict=False)
]


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


@pytest.fixture
def stages(prefix, tmp_path):
    """A prefix of each stage."""
    prefixes = {"pretrain": prefix}
    for stage, rows in (("sft", CONVERSATIONS), ("preference", PAIRS)):
        path = tmp_path / f"{stage}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        config = PreprocessConfig(
            inputs=(str(path),),
            tokenizer=str(tmp_path / "tokenizer.model"),
            output_prefix=str(tmp_path / stage),
            stage=stage,
            template="chimed",
        )
        preprocess(config)
        prefixes[stage] = tmp_path / stage
    return prefixes


def test_check_passes_sound_data_of_every_stage(stages, capsys):
    for stage, prefix in stages.items():
        assert run("check", prefix) == 0
        out = capsys.readouterr().out
        assert "WRONG" not in out and "unknown" not in out
        for what in ("index", "sha256 of", "sources", "counts", "tokenizer", "token ids"):
            assert what in out, stage
    assert "prompts" in out and "supervised ends" in out


def test_check_tells_all_that_is_wrong_and_fails(prefix, capsys):
    path = prefix.with_suffix(".bin")
    raw = bytearray(path.read_bytes())
    raw[-1] = 255
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r": 3 wrong: sha256 of data\.bin: .*; token ids: .*"):
        run("check", prefix)
    assert capsys.readouterr().out.count("WRONG") == 3


def test_check_takes_another_tokenizer(prefix, tmp_path):
    (tmp_path / "other.model").write_bytes(train_model(399))
    with pytest.raises(DataError, match="tokenizer: .* but the data was made with"):
        run("check", prefix, "--tokenizer", tmp_path / "other.model")


def test_view_shows_tokens_with_their_targets(prefix, capsys):
    assert run("view", prefix, "--document", 1, "--count", 2) == 0
    out = capsys.readouterr().out
    title = f"document 1: {len(IndexedDataset(prefix)[1])} tokens, from {prefix.parent}/corpus.txt"
    assert title.replace(" ", "") in "".join(out.split())
    assert "document 2:" in out and "document 3:" not in out
    header, first = (line.split() for line in out.splitlines()[2:4])
    assert header == ["position", "id", "token", "mask", "target", "id", "target"]
    assert first[0] == "0" and first[3] == "1" and out.count("</s>") == 4


@pytest.mark.parametrize("stage", ["pretrain", "sft", "preference"])
@pytest.mark.parametrize("layout", ["tokens", "text"])
def test_view_shows_training_samples_of_every_stage(stages, capsys, stage, layout):
    words = ("--seq-length", 256, "--count", 2, "--style", layout)
    words = ("--seq-length", 16, "--sample", 3) if stage == "pretrain" else words
    assert run("view", stages[stage], *words) == 0
    out = capsys.readouterr().out
    assert "-- segment 0, " in out and " per epoch): " in out
    if stage != "pretrain":
        assert "-- segment 1, " in out and "-- padding, " in out
    if stage != "pretrain" and layout == "text":
        assert "  given | [human]:" in out and "learned | " in out and "</s>" in out


def test_view_takes_the_settings_of_the_run(stages, capsys):
    words = ("--seq-length", 40, "--reset-attention-at-eod", "--reset-position-ids")
    assert run("view", stages["pretrain"], *words, "--eod-mask-loss", "--count", 2) == 0
    assert "-- segment 1, " in capsys.readouterr().out
    with pytest.raises(DataError, match="are longer than seq_length 70"):
        run("view", stages["sft"], "--seq-length", 70)
    assert run("view", stages["sft"], "--seq-length", 70, "--overlong", "truncate") == 0
    assert "note: " in capsys.readouterr().out
    split = ("--seq-length", 8, "--split", "3,1,1")
    assert run("view", stages["pretrain"], *split, "--part", "test") == 0
    assert "data, document 4" in capsys.readouterr().out


def test_stats_count_measure_and_draw(stages, capsys, tmp_path):
    for stage, prefix in stages.items():
        assert run("stats", prefix, "--seq-length", 150, "--plots", tmp_path / stage) == 0
        out = capsys.readouterr().out
        assert "padding" in out and "99%" in out and "malformed" in out
        assert ("supervised" in out) == (stage != "pretrain")
        for name in ("lengths.png", "sources.png"):
            assert (tmp_path / stage / name).stat().st_size > 1000
    assert "groups of 2.00 candidates on average, 0 with a tie" in out


def test_diff_tells_whether_and_where(stages, prefix, tmp_path, capsys):
    assert run("diff", prefix, prefix) == 0
    assert capsys.readouterr().out == "the first 5 documents are equal\n"
    assert run("diff", prefix, stages["sft"]) == 1
    out = capsys.readouterr().out
    assert "stage" in out and "document 0 is the first that differs, at token " in out
    assert out.count("  text | ") == 2 and out.count("  mask | ") == 1
    (tmp_path / "tokenizer.model").unlink()
    assert run("diff", stages["sft"], stages["preference"]) == 1
    out = capsys.readouterr().out
    assert " ranks | 0 1" in out and "text | not shown: " in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["view", "--document", "5"],
            "has documents 0 to 4; --document 5 --count 1 goes beyond",
        ),
        (["view", "--document", "-1"], "--document -1"),
        (["view", "--count", "0"], "--count: '0' is not a whole number of 1"),
        (["view", "--seq-length", "16", "--sample", "-1"], "--sample is -1"),
        (["view", "--seq-length", "16", "--document", "1"], "--document is not for training"),
        (["view", "--seq-length", "0"], "--seq-length: '0' is not a whole number of 1 or more"),
        (["view", "--seq-length", "x"], "--seq-length: 'x' is not a whole number of 1"),
        (["view", "--sample", "1"], "--sample is for training samples: give --seq-length"),
        (["view", "--eod-mask-loss"], "--eod-mask-loss is for training samples"),
        (["view", "--seq-length", "16", "--part", "valid"], "--part valid has no documents"),
        (["view", "--tokenizer", "nowhere"], "tokenizer 'nowhere' does not exist"),
        (["check", "--plots", "x"], "--plots is unknown"),
    ],
)
def test_what_cannot_be_shown_is_a_config_error(prefix, words, message):
    with pytest.raises(ConfigError, match=message):
        run(words[0], prefix, *words[1:])


def test_samples_longer_than_the_data_are_a_data_error(prefix):
    with pytest.raises(DataError, match="one sample of seq_length 100000 needs 100001"):
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
    with pytest.raises(ConfigError, match="'dance': it must be one of check, view"):
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
