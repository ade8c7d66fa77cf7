"""tools/preprocess_data.py: what it writes, says and returns."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_chimed.data.datasets.indexed import IndexedDataset
from megatron_chimed.errors import ConfigError, DataError, run_command
from tests.unit.tokenizer.samples import LINES, train_model
from tools import preprocess_data

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(train_model())
    (tmp_path / "corpus.txt").write_text("\n".join(LINES), encoding="utf-8")
    return tmp_path


def arguments(folder, *more, name="corpus.txt"):
    return [
        *("--input", str(folder / name)),
        *("--tokenizer", str(folder / "tokenizer.model")),
        *("--output-prefix", str(folder / "data")),
        *more,
    ]


def run_script(folder, *words):
    script = ROOT / "tools" / "preprocess_data.py"
    return subprocess.run(
        [sys.executable, str(script), *words], capture_output=True, text=True, timeout=60, cwd=ROOT
    )


def test_it_writes_the_prefix_and_says_so(folder, capsys):
    assert preprocess_data.main(arguments(folder)) == 0
    assert IndexedDataset(folder / "data").num_documents == len(LINES)
    out = capsys.readouterr().out
    assert out.startswith(f"{len(LINES)} documents, ")
    assert f"wrote {folder}/data.bin, .idx and .meta.json (uint16 ids)" in out


def test_flags_reach_the_run(folder, capsys):
    rows = [{"body": "发热"}, {"text": "x"}, {"body": ""}]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    flags = ["--text-key", "body", "--no-append-eod", "--max-bad-rate", "0.4", "--format", "text"]
    assert preprocess_data.main(arguments(folder, *flags, name="rows.jsonl")) == 0
    sidecar = IndexedDataset(folder / "data").sidecar
    assert (sidecar.documents, sidecar.eod_id) == (1, None)
    assert "--text-key body --no-append-eod --max-bad-rate 0.4" in sidecar.command
    out = capsys.readouterr().out
    assert "3 rows: 1 malformed; 2 examples: 1 empty; 1 documents" in out
    assert f"listed in {folder}/data.quarantine.jsonl" in out


QUESTION = "关于婴儿添加辅食的原则，错误的说法是"


@pytest.mark.parametrize("is_removed", [False, True])
def test_a_leaked_test_file_is_named_also_after_removal(folder, capsys, is_removed):
    exam = {"question": QUESTION, "options": ["由少到多", "由稀到稠", "患病期间及时添加新食物"]}
    other = {"question": "脊髓灰质炎疫苗的初种年龄为出生后", "options": ["2个月", "8个月"]}
    (folder / "exam.jsonl").write_text("\n".join(map(json.dumps, (other, exam))))
    leaked = f"{QUESTION} 由稀到稠 由少到多 患病期间及时添加新食物"
    (folder / "leaked.txt").write_text("\n".join([leaked, *LINES, f"题目：{leaked}"]))
    flags = ["--decontaminate", str(folder / "exam.jsonl")]
    flags += ["--remove-contaminated", "--max-contaminated", "0"] if is_removed else []
    assert preprocess_data.main(arguments(folder, *flags, name="leaked.txt")) == 0
    sidecar = IndexedDataset(folder / "data").sidecar
    (overlap,) = sidecar.cleaning["decontamination"]
    assert overlap["file"] == str(folder / "exam.jsonl")
    assert (overlap["found"], overlap["removed"]) == (1, int(is_removed))
    assert overlap["examples"] == [QUESTION]
    (match,) = overlap["matches"]
    counts = {"kept": 0, "removed": 2} if is_removed else {"kept": 2, "removed": 0}
    assert match == {"line": 2, "question": QUESTION, "score": 1.0, **counts}
    assert sidecar.documents == len(LINES) + 2 * (not is_removed)
    out = capsys.readouterr().out
    left = (
        "were in the data, 1 of them only in removed examples" if is_removed else "are in the data"
    )
    assert f"1 of 2 questions of {folder / 'exam.jsonl'} {left}; 0 are too short" in out
    assert f"  line 2: {QUESTION} (100% of it in 2 examples, {counts['removed']} of them" in out


def test_progress_is_told_in_plain_lines_without_a_terminal(folder, capsys, monkeypatch):
    monkeypatch.setattr(preprocess_data, "PLAIN_SECONDS", 0.0)
    preprocess_data.main(arguments(folder))
    error = capsys.readouterr().err
    assert "0 of 0 MB" in error and "tokens/s" in error and "\x1b" not in error


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--workers", "x"], "--workers: 'x' is not a whole number"),
        (["--no-such-flag"], "--no-such-flag is unknown"),
        (["--stage", "poetry"], "--stage 'poetry' is none of"),
        (["--max-bad-rate", "2"], "--max-bad-rate is 2.0"),
    ],
)
def test_wrong_flags_are_config_errors(folder, more, message):
    with pytest.raises(ConfigError, match=message):
        preprocess_data.main(arguments(folder, *more))


def test_missing_flags_are_config_errors():
    with pytest.raises(ConfigError, match="required: --input, --tokenizer, --output-prefix"):
        preprocess_data.main([])


def test_a_bad_row_is_a_data_error(folder):
    (folder / "bad.jsonl").write_text('{"text": "a"}\n{"text": }\n')
    with pytest.raises(DataError, match=r"bad\.jsonl:2:14 \(line:byte\): malformed JSON"):
        preprocess_data.main(arguments(folder, name="bad.jsonl"))
    assert not list(folder.glob("*data*"))


def test_exit_codes_are_those_of_the_error_classes(folder, capsys):
    def code(*words):
        return run_command(lambda: preprocess_data.main(list(words)))

    assert code(*arguments(folder)) == 0
    assert code(*arguments(folder)) == 73
    assert code(*arguments(folder, name="nowhere.txt")) == 78
    (folder / "bad.jsonl").write_text("{\n")
    assert code(*arguments(folder, "--overwrite", name="bad.jsonl")) == 65
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_the_script_runs_by_itself_with_workers(folder):
    result = run_script(folder, *arguments(folder, "--workers", "2"))
    assert result.returncode == 0, result.stderr
    assert IndexedDataset(folder / "data").num_documents == len(LINES)


def test_the_script_exits_with_one_message(folder):
    (folder / "bad.jsonl").write_text("{\n")
    result = run_script(folder, *arguments(folder, "--workers", "2", name="bad.jsonl"))
    assert result.returncode == 65
    assert result.stderr.startswith("DataError: ") and len(result.stderr.splitlines()) == 1


def test_it_starts_without_torch_and_at_once(folder):
    before = os.times()
    result = run_script(folder, "--help")
    after = os.times()
    assert result.returncode == 0 and "--output-prefix" in result.stdout
    seconds = after.children_user + after.children_system
    assert seconds - before.children_user - before.children_system < 1  # of its own processor time
    check = "import sys; from tools import preprocess_data; print('torch' in sys.modules)"
    command = [sys.executable, "-c", check]
    loaded = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert loaded.stdout == "False\n", loaded.stderr
