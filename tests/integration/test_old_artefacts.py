"""What was made before modules, classes and configuration keys got other names still resumes.

`tests/fixtures/before_renames` holds runs, checkpoints, data, jobs, a workflow and configurations
of that time; its README says how they were made. They name each other by relative paths, so every
test works in a fresh copy of them as its current directory.
"""

import importlib
import json
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import pyarrow.parquet
import pytest
import yaml
from safetensors.torch import load_file

from tests.integration.commands import ROOT, call, snapshot, train_events
from tests.unit.data.prefixes import renamed

ARCHIVE = ROOT / "tests/fixtures/before_renames/artefacts.tar.xz"
RUNS = ("pretrain", "sft", "lora", "reward", "dpo")
STOPPED, LAST = 10, 20
CHAT = ("--template", "ziya", "--seq-length", 128)
DATA = {
    "text": ("--input", "corpus/text.jsonl"),
    "text_clean": (
        *("--input", "corpus/text.jsonl"),
        *("--normalize", "--deidentify", "--deduplicate", "exact"),
    ),
    "chat": ("--stage", "sft", "--input", "corpus/chat.jsonl", *CHAT),
    "pairs": ("--stage", "preference", "--input", "corpus/pairs.jsonl", *CHAT),
}
ODD = (
    *("--stage", "sft", "--input", *(f"corpus/odd_{part}.jsonl" for part in "abc"), *CHAT),
    *("--deduplicate", "exact", "--max-bad-rate", 0.2),
)
NUM_ANSWERS, NUM_KEPT = 18, 8  # drawn in a round, and before the kill of the job `drawing`


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The archive's content; files have the times that it gives them."""
    folder = tmp_path_factory.mktemp("artefacts")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def old(unpacked, tmp_path, monkeypatch):
    """A copy of everything, as the current directory."""
    folder = shutil.copytree(unpacked, tmp_path / "old", symlinks=True)
    monkeypatch.chdir(folder)
    return folder


def succeed(tool, *words):
    done = call(tool, *words)
    assert done.code == 0, done.err
    return done.out + done.err


def figures(run):
    """Loss and gradient norm of each step in a run's folder."""
    events = train_events(run)
    assert [event["step"] for event in events] == [*range(1, len(events) + 1)]
    return [(event["loss"], event["grad_norm"]) for event in events]


@pytest.mark.parametrize("name", RUNS)
def test_a_stopped_run_goes_on_as_the_unbroken_one(old, name):
    recorded = json.loads((old / "expected/losses.json").read_text())[name]
    recorded = [*zip(recorded["loss"], recorded["grad_norm"], strict=True)]
    config = ("--config", f"configs/{name}.yaml")
    assert figures(old / f"runs/{name}") == recorded[:STOPPED]
    whole = old / f"whole/{name}"
    succeed("train", *config, "--output-dir", whole)
    said = succeed("train", *config)
    assert f"resumed from runs/{name}/checkpoints/iter_{STOPPED:07}" in said
    resumed, unbroken = figures(old / f"runs/{name}"), figures(whole)
    assert len(resumed) == len(recorded) == LAST
    for found, expected in zip((*resumed, *unbroken), (*recorded, *recorded), strict=True):
        assert found == pytest.approx(expected, abs=1e-5)
    # A processor that rounds as that of the recording shows the rest to the last digit.
    if unbroken[:STOPPED] == recorded[:STOPPED]:
        assert resumed == unbroken == recorded


@pytest.mark.parametrize("name", RUNS)
def test_an_old_checkpoint_is_verified_and_read(old, name):
    said = succeed("inspect_checkpoint", f"runs/{name}", "--verify")
    assert f"iter_{STOPPED:07}" in said
    if name == "reward":
        rows = [json.loads(line) for line in Path("corpus/prompts.jsonl").read_text().splitlines()]
        words = ("--input", "corpus/prompts.jsonl", "--output", "scored.jsonl")
        succeed("score", "--checkpoint", f"runs/{name}", *words)
        scored = [json.loads(line) for line in Path("scored.jsonl").read_text().splitlines()]
        drawn = pyarrow.parquet.read_table("expected/candidates.parquet").to_pylist()
        expected = [row["score"] for row in drawn if row["source"] == "reference"]
        assert len(scored) == len(rows)
        assert [row["score"] for row in scored] == pytest.approx(expected, abs=1e-5)
    else:
        words = ("--prompt", "肺炎口服什么？", "--max-new-tokens", 4)
        assert succeed("generate", "--checkpoint", f"runs/{name}", *words)


@pytest.mark.parametrize("name", DATA)
def test_the_same_text_gives_the_same_files(old, name):
    succeed("inspect_dataset", "check", f"data/{name}", "--tokenizer", "tokenizer")
    words = ("--tokenizer", "tokenizer", "--output-prefix", f"again/{name}")
    succeed("preprocess_data", *DATA[name], *words)
    made = snapshot(old / "again")
    before = {k: v for k, v in snapshot(old / "data").items() if k.partition(".")[0] == name}
    assert made.keys() == before.keys() and len(before) >= 3
    for file in before:
        if not file.endswith(".meta.json"):
            assert made[file] == before[file], file
    then, now = (json.loads(files[f"{name}.meta.json"]) for files in (before, made))
    kept = ("tokenizer_sha256", "bin_sha256", "idx_sha256", "tokens", "documents", "dtype")
    assert {key: now[key] for key in kept} == {key: then[key] for key in kept}


def test_interrupted_preprocessing_starts_from_scratch(old):
    """Its first rows were read by other rules: some taught what they do not say."""
    words = (*ODD, "--tokenizer", "tokenizer", "--output-prefix")
    said = succeed("preprocess_data", *words, "interrupted/odd")
    assert "odd.work holds a run with different program" in said
    assert "this run starts from scratch" in said
    succeed("preprocess_data", *words, "whole/odd")
    resumed, whole = snapshot(old / "interrupted"), snapshot(old / "whole")
    assert resumed.keys() == whole.keys() and len(whole) == 6
    for file in whole:
        names = ("interrupted/odd", "whole/odd")
        assert renamed(resumed[file], *names) == renamed(whole[file], *names), file


def states(text):
    rows = (line.split() for line in text.splitlines() if line[:4].strip().isdigit())
    return {name: state for _, name, state, *_ in rows}


@pytest.mark.parametrize("place", ["where it was", "by absolute paths"])
def test_a_finished_workflow_has_nothing_to_do(old, place):
    path = old / "configs/workflow.yaml"
    declared = yaml.safe_load(path.read_text())
    if place == "by absolute paths":  # what counts of a path is what lies there
        text = path.read_text().replace("corpus/", f"{old}/corpus/")
        path.write_text(text.replace("folder: workflow", f"folder: {old}/workflow"))
    before = snapshot(old / "workflow")
    said = succeed("run_pipeline", "--config", path, "--plan")
    assert states(said) == dict.fromkeys(declared["steps"], "done"), said
    said = succeed("run_pipeline", "--config", path)
    assert states(said) == dict.fromkeys(declared["steps"], "done"), said
    assert "done: all 9 steps" in said and "[1/9]" not in said
    after = snapshot(old / "workflow")
    for name in set(before) - {"hashes.json", "ledger.json"}:
        assert after[name] == before[name], name
    assert set(after) - set(before) <= {".lock"}
    then, now = (json.loads(files["ledger.json"]) for files in (before, after))
    assert now["steps"] == then["steps"] and now["replaced"] == []


def answers(path):
    """Rows of an answers file by prompt, source and number."""
    rows = pyarrow.parquet.read_table(path).to_pylist()
    return {(row["prompt_id"], row["source"], row["number"]): row for row in rows}


def run_rounds(old, job):
    """Starts a killed job again; what it said."""
    words = ("--config", "configs/rejection.yaml", "--output-dir", f"rejection/{job}")
    said = succeed("rejection_sample", *words)
    assert "round 1 is done" in said and (old / f"rejection/{job}/report.md").is_file()
    figures(old / f"rejection/{job}/round_01/train")
    return said


def test_rejection_sampling_goes_on_with_the_answers_that_were_kept(old):
    folder = old / "rejection/drawing"
    samples = (folder / "round_00/samples.parquet").read_bytes()
    partial = folder / "round_01/.candidates.parquet.partial-0"
    header, *lines = partial.read_text().splitlines()
    kept = [json.loads(line) for line in lines]
    assert len(kept) == NUM_KEPT
    for row in kept:  # no draw would give these again
        row["token_ids"] = [*reversed(row["token_ids"]), row["prompt_id"] + 3]
    partial.write_text("\n".join([header, *map(json.dumps, kept)]) + "\n")
    run_rounds(old, "drawing")
    assert (folder / "round_00/samples.parquet").read_bytes() == samples
    found = answers(folder / "round_01/candidates.parquet")
    expected = answers(old / "expected/candidates.parquet")
    # The others may hang on a rounding, so they are only counted.
    assert {key: row["seed"] for key, row in found.items()} == {
        key: row["seed"] for key, row in expected.items()
    }
    drawn = {
        (row["prompt"], row["number"]): list(row["token_ids"])
        for row in found.values()
        if row["source"] == "policy"
    }
    assert len(drawn) == NUM_ANSWERS
    for row in kept:
        assert drawn[row["prompt_id"], row["candidate"]] == row["token_ids"]


@pytest.mark.parametrize("job", ["scored", "training"])
def test_rejection_sampling_goes_on_without_drawing_again(old, job):
    folder, names = old / "rejection" / job, ("round_00/samples", "round_01/candidates")
    before = {name: (folder / f"{name}.parquet").read_bytes() for name in names}
    said = run_rounds(old, job)
    assert f"{NUM_ANSWERS} completions" not in said
    assert {name: (folder / f"{name}.parquet").read_bytes() for name in names} == before
    found = answers(folder / "round_01/candidates.parquet")
    expected = answers(old / "expected/candidates.parquet")
    assert found == expected, "a killed job has the answers of one that was not"
    resumed = "resumed from rejection/training/round_01/train/checkpoints/iter_0000004"
    assert (resumed in said) == (job == "training")


@pytest.mark.parametrize(
    ("name", "words", "file"),
    [
        ("sft", (), "model.safetensors"),
        ("reward", (), "model.safetensors"),
        ("lora", ("--lora-format", "peft"), "adapter_model.safetensors"),
    ],
)
def test_an_old_checkpoint_gives_the_old_export(old, name, words, file):
    output = ("--output", f"again/{name}")
    succeed("convert_checkpoint", "export-hf", "--checkpoint", f"runs/{name}", *words, *output)
    made, before = Path("again", name), Path("exports", name)
    now, then = load_file(made / file), load_file(before / file)
    assert now.keys() == then.keys()
    for key, tensor in then.items():
        assert now[key].dtype == tensor.dtype
        assert now[key].numpy().tobytes() == tensor.numpy().tobytes(), key
    for path in before.iterdir():
        if path.suffix != ".safetensors":
            assert (made / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("name", ["sft", "reward"])
def test_an_old_export_comes_back(old, name):
    succeed("convert_checkpoint", "import-hf", "--input", f"exports/{name}", "--output", "imported")
    shutil.move(f"exports/{name}", "exported")
    output = ("--output", f"exports/{name}")
    succeed("convert_checkpoint", "export-hf", "--checkpoint", "imported", *output)
    now = load_file(f"exports/{name}/model.safetensors")
    then = load_file("exported/model.safetensors")
    assert {k: v.numpy().tobytes() for k, v in now.items()} == {
        k: v.numpy().tobytes() for k, v in then.items()
    }


def leaves(value):
    """Every scalar in nested mappings and lists."""
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return [leaf for item in inner for leaf in leaves(item)]
    return [repr(value)]


@pytest.mark.parametrize(("tool", "name"), [("train", "run"), ("rejection_sample", "rejection")])
def test_every_key_of_an_old_configuration_is_still_read(old, tool, name, capsys):
    """Whatever its keys are called now, each value arrives."""
    path = old / f"configs/every_key_{name}.yaml"
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"tools.{tool}").main(["--config", str(path), "--print-config"])
    assert not ended.value.code
    given = leaves(yaml.safe_load(path.read_text()))
    lost = Counter(given) - Counter(leaves(yaml.safe_load(capsys.readouterr().out)))
    assert not lost, lost


def test_what_a_dry_run_of_an_old_configuration_says(old):
    for name in RUNS:
        said = succeed("train", "--config", f"configs/{name}.yaml", "--dry-run")
        assert "20 steps of" in said and "TP1 x PP1 x DP1" in said
    said = succeed("rejection_sample", "--config", "configs/every_key_rejection.yaml", "--dry-run")
    assert "rounds: 3; answers a round: 30 (5 x 6 prompts), of at most 33 tokens" in said
