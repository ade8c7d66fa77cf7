"""`tools/run_pipeline.py` over the real commands: the quickstart's pipeline, tiny."""

import json
import time

import pytest
import torch
import yaml
from safetensors.torch import load_file

from examples.quickstart.corpus.generator import generate
from megatron_chimed import files
from megatron_chimed.checkpoint.reader import newest_checkpoint, open_checkpoint
from megatron_chimed.observe.metrics import read_metrics
from megatron_chimed.workflow.declaration import load_workflow
from megatron_chimed.workflow.preparation import prepare_steps
from tests.integration import commands
from tests.integration.commands import ROOT, call, finish, spawn
from tests.integration.rejection import configure_rounds
from tools.run_pipeline import preset

MODEL = {
    "vocab_size": 1900,
    "hidden_size": 16,
    "num_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "ffn_hidden_size": 16,
    "max_position_embeddings": 32,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the quickstart's corpus and the beginning of its pipeline, in seconds."""
    folder = tmp_path_factory.mktemp("pipeline")
    generate(folder / "corpus")
    declared = yaml.safe_load((ROOT / "examples/quickstart/pipeline.yaml").read_text())
    declared["folder"] = str(folder / "out")
    names = ("tokenizer", "train_data", "pretrain", "hf")
    steps = declared["steps"] = {name: declared["steps"][name] for name in names}
    steps["tokenizer"]["options"] |= {
        "input": str(folder / "corpus/train.jsonl"),
        "vocab-size": MODEL["vocab_size"] - 2,  # beside two added tokens
    }
    steps["train_data"]["options"] |= {"input": str(folder / "corpus/valid.jsonl")}
    steps["pretrain"] |= {"launch": {"nproc": 1}, "config": []}
    # Checking logits imports transformers, tested elsewhere.
    steps["hf"]["options"] = {"checkpoint": "${pretrain}"}
    steps["pretrain"]["settings"] = {
        "tokenizer": "${tokenizer}",
        "model": MODEL,
        "data": {"train": "${train_data}", "seq_length": 32},
        "training": {"train_steps": 400, "precision": "fp32"},
        "checkpoint": {"save_interval": 100},
        "logging": {"tensorboard": False, "progress": "plain", "log_interval": 200},
    }
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(declared, sort_keys=False))
    return folder


def states(text):
    rows = (line.split() for line in text.splitlines() if line[:4].strip().isdigit())
    return {name: state for _, name, state, *_ in rows}


def starts(folder):
    records = json.loads((folder / "out/ledger.json").read_text())["steps"]
    return {name: len(record["attempts"]) for name, record in records.items()}


def wait_until_free(run):
    """Waits until the training of a killed workflow has saved its step and released the run."""
    deadline = time.monotonic() + commands.TIMEOUT_SECONDS
    while True:
        try:
            with files.locked(run / ".lock", "a test"):
                return
        except BlockingIOError:
            assert time.monotonic() < deadline, "it does not end"
            time.sleep(0.1)


@pytest.mark.timing
def test_killed_within_a_step_and_between_steps_then_changed(place):
    words = ["--config", place / "pipeline.yaml"]
    process = spawn("run_pipeline", *words)
    commands.read_until(process, "[2/4] train_data: done")
    process.kill()
    finish(process)
    process = spawn("run_pipeline", *words)
    commands.read_until(process, "    | checkpoint: ")  # in the middle of training
    process.kill()
    finish(process)
    wait_until_free(place / "out/pretrain")
    planned = call("run_pipeline", *words, "--plan")
    assert states(planned.out) == {
        "tokenizer": "done",
        "train_data": "done",
        "pretrain": "resume",
        "hf": "run",
    }, planned.err

    done = call("run_pipeline", *words)
    assert done.code == 0, done.err
    assert "done: all 4 steps" in done.out
    assert starts(place)["tokenizer"] == starts(place)["train_data"] == starts(place)["hf"] == 1
    assert max(event["step"] for event in read_metrics(place / "out/pretrain/metrics.jsonl")) == 400
    log = (place / "out/logs/pretrain.log").read_text()
    assert "fresh weights" in log and "resumed from" in log
    assert (place / "out/hf/model.safetensors").is_file()

    with open(place / "corpus/valid.jsonl", "a", encoding="utf-8") as corpus:
        corpus.write('{"text": "more"}\n')
    refused = call("run_pipeline", *words)
    assert refused.code == 78
    assert "train_data: input" in refused.err and "valid.jsonl changed" in refused.err
    assert states(refused.out) == {
        "tokenizer": "done",
        "train_data": "blocked",
        "pretrain": "blocked",
        "hf": "blocked",
    }
    planned = call("run_pipeline", *words, "--plan", "--from", "train_data")
    assert planned.code == 0
    assert list(states(planned.out).values()) == ["done", "run", "run", "run"]


@pytest.fixture(scope="module")
def regime(rejection_project):
    """A declared SFT model, its judge, a round of both, and the export of what comes of it."""
    folder, steps = rejection_project, {}
    for name, data, length in (("sft", "chat", 40), ("judge", "pairs", 8)):
        settings = yaml.safe_load((folder / f"{name}.yaml").read_text())
        del settings["output_dir"]
        settings["training"]["train_steps"] = length
        settings["data"]["train"] = str(folder / data)
        steps[name] = {"kind": "train", "settings": settings}
    steps["judge"]["settings"]["checkpoint"] = {"load": "${sft}"}
    rounds = yaml.safe_load(configure_rounds(folder, "declared").read_text())
    del rounds["output_dir"]
    asked = folder / "declared.jsonl"
    asked.write_bytes((folder / "train.jsonl").read_bytes())
    rounds |= {"policy": "${sft}", "reward_model": "${judge}"}
    rounds["prompts"]["train"] = [str(asked)]
    steps["rounds"] = {"kind": "rejection", "settings": rounds}
    steps["hf"] = {"kind": "export-hf", "options": {"checkpoint": "${rounds}"}}
    path = folder / "regime.yaml"
    declared = {"folder": str(folder / "regime"), "steps": steps}
    path.write_text(yaml.safe_dump(declared, sort_keys=False))
    return path, asked


def test_rounds_of_rejection_sampling_as_a_step(regime):
    path, asked = regime
    words, folder = ("--config", path), path.parent / "regime"
    done = call("run_pipeline", *words)
    assert done.code == 0, done.err
    assert "done: all 4 steps" in done.out
    assert (folder / "rounds/round_01/report.md").is_file()
    records = json.loads((folder / "ledger.json").read_text())["steps"]
    assert records["rounds"]["seeds"] == {"seed": 1234}
    exported = load_file(folder / "hf/model.safetensors")
    newest = open_checkpoint(newest_checkpoint(folder / "rounds/round_01/train"))
    assert all(torch.equal(tensor, newest.read(key)) for key, tensor in exported.items())
    again = call("run_pipeline", *words)
    assert again.code == 0
    assert set(states(again.out).values()) == {"done"}

    asked.write_text(asked.read_text().replace("？", "。"))
    refused = call("run_pipeline", *words)
    assert refused.code == 78
    assert "rounds: prompts.train" in refused.err and "declared.jsonl changed" in refused.err
    assert list(states(refused.out).values()) == ["done", "done", "blocked", "blocked"]


def test_wrong_flags(place):
    both = call("run_pipeline", "--config", place / "p.yaml", "--from", "x", "--accept-changes")
    assert both.code == 78 and "not allowed with argument" in both.err
    missing = call("run_pipeline", "--config", place / "p.yaml")
    assert missing.code == 78 and "p.yaml cannot be read" in missing.err


@pytest.mark.parametrize("path", sorted(ROOT.glob("examples/*/pipeline.yaml")), ids=str)
def test_the_example_declarations_are_valid(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    workflow = load_workflow(path)
    steps = prepare_steps(workflow, ROOT / "tools", preset)
    assert len(steps) == len(workflow.steps) >= 5
