"""The training command: what it refuses, with which exit code, what it plans, and one short run."""

import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist
import yaml

from megatron_chimed import run as stage
from megatron_chimed.checkpoint.reader import CheckpointReader
from megatron_chimed.tokenizer import load_tokenizer
from megatron_chimed.training import loop
from tests.unit.data.prefixes import write_prefix
from tests.unit.tokenizer.samples import train_model
from tools import train

ROOT = Path(__file__).resolve().parents[3]
VOCAB_SIZE = 400


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A tokenizer, data of that tokenizer and data of another one."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "tokenizer.model").write_bytes(train_model(VOCAB_SIZE))
    identity = load_tokenizer(folder / "tokenizer.model").identity
    generator = np.random.default_rng(0)
    documents = [generator.integers(3, VOCAB_SIZE, 40).tolist() for _ in range(12)]
    facts = {"tokenizer_sha256": identity, "vocab_size": VOCAB_SIZE}
    write_prefix(folder / "train", documents, **facts)
    write_prefix(folder / "valid", documents[:2], **facts)
    write_prefix(folder / "short", [[5, 6, 7]], **facts)
    write_prefix(folder / "foreign", documents)
    return folder


@pytest.fixture
def run(files, tmp_path, capsys, monkeypatch):
    """Runs the command on a small configuration: (exit code, stdout, stderr)."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)

    def command(*flags, **changes):
        config = {
            "output_dir": str(tmp_path / "run"),
            "tokenizer": str(files / "tokenizer.model"),
            "model": {
                "vocab_size": VOCAB_SIZE,
                "hidden_size": 32,
                "num_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "ffn_hidden_size": 48,
                "max_position_embeddings": 64,
            },
            "data": {
                "train": str(files / "train"),
                "valid": str(files / "valid"),
                "seq_length": 16,
            },
            "training": {"train_steps": 3, "global_batch_size": 2, "precision": "fp32"},
            "logging": {"progress": "off", "tensorboard": False},
        }
        for section, values in changes.items():
            merged = {**config.get(section, {}), **values} if isinstance(values, dict) else values
            config[section] = merged
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(config))
        code = train.main(["--config", str(path), *map(str, flags)])
        told = capsys.readouterr()
        assert not dist.is_initialized(), "a process group was left"
        return code, told.out, told.err

    return command


def test_a_run_from_start_to_end(run, tmp_path):
    code, out, err = run()
    assert (code, err) == (0, "")
    folder = tmp_path / "run"
    assert "done: 3 steps" in out and "best validation loss" in out and str(folder) in out
    assert (folder / "loss_curve.png").stat().st_size > 0
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "grad_norm" in row] == [1, 2, 3]
    reader = CheckpointReader(folder / "checkpoints/iter_0000003")
    assert (reader.tokenizer_folder / "tokenizer.model").is_file()
    # Both copies of the configuration are the one that ran.
    assert reader.config == yaml.safe_load((folder / "config.yaml").read_text())
    assert reader.config["training"]["train_steps"] == 3


def test_the_same_command_goes_on_and_the_saved_configuration_too(run, tmp_path, capsys):
    assert run("--training.stop_step", 2)[0] == 0
    code, out, _ = run()
    assert code == 0 and "at step 2" in out and "done: 3 steps" in out
    code = train.main(
        ["--config", str(tmp_path / "run/config.yaml"), "--training.train_steps", "4"]
    )
    assert code == 0 and "at step 3" in capsys.readouterr().out


CONFIG_ERRORS = {
    "4-bit weights": (
        {"flags": ["--model.load_in_4bit", "true"]},
        "--model.load_in_4bit is unknown: weights are fp32, bf16 or fp16, never quantized",
    ),
    "unknown key": ({"flags": ["--model.layers", 3]}, "--model.layers"),
    "unknown section": ({"modle": {}}, "unknown key 'modle' (did you mean model?)"),
    "wrong type": ({"training": {"train_steps": "x"}}, "training.train_steps"),
    "missing tokenizer": ({"tokenizer": "gone.model"}, "tokenizer 'gone.model' does not exist"),
    "missing data": ({"data": {"train": "gone"}}, "gone"),
    "foreign data": ({"data": {"train": "{files}/foreign"}}, "was made with tokenizer"),
    "small vocabulary": ({"model": {"vocab_size": 256}}, "Set --model.vocab_size 400"),
    "long sequences": ({"data": {"seq_length": 128}}, "Set --data.seq_length 64 or less"),
    "layout": ({"flags": ["--parallel.tensor_parallel_size", 2]}, "1 ranks cannot be split"),
    "batch": ({"training": {"micro_batch_size": 3}}, "Set --training.global_batch_size 3"),
    "preset": ({"flags": ["--preset", "big"]}, "--preset is 'big': it must be one of"),
    "no memory": (
        {"model": {"hidden_size": 65536, "ffn_hidden_size": 262144, "num_layers": 80}},
        "GiB for weights, gradients and moments, and this machine has",
    ),
    "absurd": ({"model": {"num_layers": 10**7}}, "--model.num_layers is 10000000: no model is"),
    "too many ranks": ({"flags": ["--dry-run", "--world-size", 10**9]}, "from 1 to 65536"),
    "world size": ({"flags": ["--dry-run", "--world-size", "many"]}, "--world-size"),
    "no ranks": ({"flags": ["--dry-run", "--world-size", 0]}, "--world-size"),
    "world size of a real run": ({"flags": ["--world-size", 8]}, "--dry-run"),
    "preset in a file": ({"preset": "tiny"}, "unknown key 'preset'"),
    "seed": ({"training": {"seed": -1}}, "--training.seed is -1"),
}


@pytest.mark.parametrize("name", CONFIG_ERRORS)
def test_a_wrong_configuration_ends_with_78(run, files, tmp_path, name):
    changes, message = CONFIG_ERRORS[name]
    changes = json.loads(json.dumps(changes).replace("{files}", str(files)))
    code, out, err = run(*changes.pop("flags", ()), **changes)
    assert (code, out) == (78, "")
    assert err.startswith("ConfigError: ") and message in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists(), "nothing is made before all is checked"


def test_data_that_is_too_small_or_damaged_ends_with_65(run, files, tmp_path):
    code, _, err = run(data={"train": str(files / "short")})
    assert code == 65 and "hold 3 tokens" in err and err.count("\n") == 1
    for suffix in (".bin", ".idx", ".meta.json"):
        shutil.copy(files / f"train{suffix}", tmp_path / f"cut{suffix}")
    cut = tmp_path / "cut.bin"
    cut.write_bytes(cut.read_bytes()[:-10])
    code, _, err = run(data={"train": str(tmp_path / "cut")})
    assert code == 65 and "cut.bin" in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_an_output_folder_that_is_a_file_ends_with_73(run, tmp_path):
    (tmp_path / "taken").write_text("mine")
    code, _, err = run(output_dir=str(tmp_path / "taken"))
    assert code == 73 and "taken" in err and err.count("\n") == 1
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_damaged_checkpoint_ends_with_74(run, tmp_path):
    assert run()[0] == 0
    (weights,) = tmp_path.glob("run/checkpoints/iter_*/*.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    code, _, err = run(training={"train_steps": 5})
    assert code == 74 and "iter_0000003" in err
    assert weights.read_bytes() == content


def test_a_refused_run_leaves_the_folder_as_it_was(run, tmp_path):
    assert run()[0] == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("run/**/*") if path.is_file()}
    for changes, message in (
        ({"model": {"num_layers": 4}}, "num_layers is 2 there and 4 here"),
        ({"training": {"seed": 5}}, "training.seed was 1234 and is 5"),
        ({"checkpoint": {"resume": False}}, "holds checkpoints"),
    ):
        code, _, err = run(**changes)
        assert code == 78 and message in err
    after = {path: path.read_bytes() for path in tmp_path.rglob("run/**/*") if path.is_file()}
    assert after == before


def test_a_dry_run_plans_and_makes_nothing(run, tmp_path):
    flags = ["--dry-run", "--world-size", 8]
    parallel = {"tensor_parallel_size": 2, "pipeline_parallel_size": 2, "sequence_parallel": True}
    code, out, err = run(*flags, parallel=parallel)
    assert (code, err) == (0, "")
    # h 32, f 48, 4 heads of which 2 key-value, 2 layers, 400 ids: by hand.
    layer = 32 * 32 * 2 + 2 * 32 * 16 + 3 * 32 * 48 + 2 * 32
    words = " ".join(out.split())
    assert f"{2 * layer + 2 * 400 * 32 + 32:,} parameters, fp32, recompute none" in words
    assert "vocabulary 400 (in memory 512)" in words
    assert "3 steps of 32 tokens = 96 tokens; 1 micro-batches of 1 on each" in words
    assert "TP2 x PP2 x DP2 +sequence parallel, 8 ranks" in words
    assert "nothing was trained" in words
    assert not (tmp_path / "run").exists()


def test_a_dry_run_with_dropout_under_sequence_parallelism(run):
    """Ranks draw their own masks there, from streams of which fake tensors have none."""
    parallel = {"tensor_parallel_size": 2, "sequence_parallel": True}
    code, out, err = run(
        "--dry-run", "--world-size", 2, parallel=parallel, model={"hidden_dropout": 0.1}
    )
    assert (code, err) == (0, "") and "TP2" in out


def test_a_dry_run_checks_the_data_too(run):
    code, _, err = run("--dry-run", data={"train": "gone"})
    assert code == 78 and "gone" in err
    code, _, err = run("--dry-run", "--world-size", 3, parallel={"tensor_parallel_size": 2})
    assert code == 78 and "3 ranks cannot be split" in err


def test_a_dry_run_plans_first_and_then_names_all_that_is_missing(run):
    changes = {
        "tokenizer": "gone/hf",
        "data": {"train": "gone/a", "valid": "gone/b"},
        "checkpoint": {"load": "gone/base"},
    }
    code, out, err = run("--dry-run", **changes)
    assert code == 78 and "memory of each rank" in out and "3 steps of 32 tokens" in out
    assert "valid" not in out.replace("valid'", ""), "nothing may read as if all were there"
    assert err.startswith("ConfigError: planned as above, but 4 inputs are missing")
    command = "tools/preprocess_data.py --input FILES --tokenizer gone/hf --output-prefix gone/a"
    for line in (
        "tokenizer gone/hf: put the model's Hugging Face folder there",
        f"data.train gone/a: make it from your files with: {command}",
        "data.valid gone/b: make it",
        "tools/convert_checkpoint.py import-hf --input HF_FOLDER --output gone/base",
    ):
        assert f"  - {line}" in err or line in err
    code, out, err = run("--dry-run", model={"vocab_size": None}, stage="sft", **changes)
    assert code == 78 and "since there is no tokenizer yet" in " ".join(out.split())
    assert "--stage sft --template NAME --seq-length 16" in err


def test_a_dry_run_looks_at_the_weights_to_start_from(run, tmp_path):
    assert run()[0] == 0
    load = {"load": str(tmp_path / "run")}
    other = {"output_dir": str(tmp_path / "other"), "checkpoint": load}
    code, out, err = run("--dry-run", **other)
    assert (code, err) == (0, "") and "inputs and layout are valid" in out
    code, out, err = run("--dry-run", model={"num_layers": 4}, **other)
    assert code == 78 and "num_layers is 2 there and 4 here" in err and "valid" not in out


def stored(tmp_path, run="run"):
    """The configurations of a run: its own, and that of its newest checkpoint."""
    folder = tmp_path / run
    newest = max(folder.glob("checkpoints/iter_*"))
    return yaml.safe_load((folder / "config.yaml").read_text()), CheckpointReader(newest).config


def test_the_vocabulary_is_the_tokenizers(run, tmp_path):
    assert run(model={"vocab_size": None})[0] == 0
    for config in stored(tmp_path):
        assert config["model"]["vocab_size"] == VOCAB_SIZE
    # Weights keep a padded one, on a resume and in the next stage.
    padded = {"output_dir": str(tmp_path / "padded")}
    assert run(model={"vocab_size": 448}, **padded)[0] == 0
    code, out, _ = run(model={"vocab_size": None}, training={"train_steps": 4}, **padded)
    assert code == 0 and "done: 4 steps" in out
    after = {
        "output_dir": str(tmp_path / "after"),
        "checkpoint": {"load": str(tmp_path / "padded")},
    }
    assert run(model={"vocab_size": None}, **after)[0] == 0
    assert stored(tmp_path, "after")[1]["model"]["vocab_size"] == 448


def test_a_tokenizer_that_outgrew_the_weights_is_refused(run, tmp_path):
    assert run(training={"train_steps": 1})[0] == 0
    (tmp_path / "larger").mkdir()
    (tmp_path / "larger/tokenizer.model").write_bytes(train_model(VOCAB_SIZE + 50))
    code, _, err = run(
        model={"vocab_size": None},
        tokenizer=str(tmp_path / "larger"),
        output_dir=str(tmp_path / "next"),
        checkpoint={"load": str(tmp_path / "run")},
    )
    assert code == 78 and "iter_0000001 only 400. Give the model's own tokenizer" in err
    assert "--model.vocab_size" not in err, "weights cannot grow rows"


def test_epochs_become_steps(run, tmp_path):
    """12 documents of 40 tokens make 29 samples of 16; 2 go into a step."""
    epochs = {"train_steps": None, "epochs": 0.2}
    code, out, _ = run(training=epochs, logging={"progress": "plain"})
    assert code == 0 and "done: 3 steps" in out
    assert "0.2 x 29 samples, 2 a step: 3 steps" in out
    for config in stored(tmp_path):
        assert (config["training"]["train_steps"], config["training"]["epochs"]) == (3, None)
    rows = [json.loads(row) for row in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    rates = [row["learning_rate"] for row in rows if "learning_rate" in row]
    assert rates[-1] == pytest.approx(1e-5), "the schedule ends with the run"
    # More epochs go on, as more steps do; the same are done already.
    assert "nothing to train" in run(training=epochs, logging={"progress": "plain"})[1]
    code, out, _ = run(training={**epochs, "epochs": 0.3}, logging={"progress": "plain"})
    assert code == 0 and "done: 5 steps" in out and "training.train_steps 3 -> 5" in out


def test_epochs_do_not_go_on_with_another_batch(run, tmp_path):
    epochs = {"train_steps": None, "epochs": 0.2}
    assert run(training={**epochs, "stop_step": 1})[0] == 0
    before = (tmp_path / "run/config.yaml").read_bytes()
    code, _, err = run(training={**epochs, "global_batch_size": 4})
    assert code == 78 and "was started with training.global_batch_size 2, now it is 4" in err
    assert "set where the run ends with --training.train_steps; it has done 1 steps" in err
    assert (tmp_path / "run/config.yaml").read_bytes() == before
    assert run(training={"train_steps": 3, "global_batch_size": 4})[0] == 0


def test_a_dry_run_knows_epochs(run, tmp_path):
    code, out, err = run("--dry-run", training={"train_steps": None, "epochs": 2})
    words = " ".join(out.split())
    assert (code, err) == (0, "") and "2 x the data in steps of 32 tokens" in words
    assert "29 samples of 16 tokens; the run reads 58 in 29 steps" in words


def test_help_in_a_bare_process():
    """Without torchrun's variables and without a GPU; every section is there."""
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(
        [sys.executable, "tools/train.py", "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**environment, "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "100"},
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    for flag in ("--config", "--preset", "--dry-run", "--world-size", "--model.num_layers"):
        assert flag in done.stdout
    assert "python tools/launch.py --nproc-per-node 2 --run-folder runs/tp2" in done.stdout


@pytest.mark.parametrize(
    ("best", "hint", "said"),
    [
        (4, True, "its checkpoint is {0}/iter_0000004, not the newest: give {0}/best, which names"),
        (4, False, "its checkpoint is {0}/iter_0000004, not the newest: give it to use it"),
        (6, True, "its checkpoint is the newest, {0}/iter_0000006"),
    ],
)
def test_the_end_of_a_run_says_where_the_best_checkpoint_is(tmp_path, best, hint, said):
    root = tmp_path / "checkpoints"
    for step in (4, 6):
        (root / f"iter_000000{step}").mkdir(parents=True)
    if hint:
        (root / "best").write_text(f"iter_000000{best}\n")
    outcome = loop.Outcome(
        steps=6,
        loss=2.0,
        valid_loss=2.5,
        best_step=best,
        checkpoint=root / "iter_0000006",
        stopped_early=False,
        stop_signal=None,
    )
    text = stage._describe(outcome, types.SimpleNamespace(output_dir=str(tmp_path)))
    assert f"best validation loss 2.5000 at step {best}" in text
    assert said.format(root) in text
