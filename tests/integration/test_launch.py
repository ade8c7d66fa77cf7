"""`tools/launch.py` over the real torchrun, and the scripts of examples/ziya_13b."""

import json
import os
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest
import yaml

from megatron_chimed.config.presets import PRESETS
from megatron_chimed.conversion import hf
from megatron_chimed.launch.process_tree import running_children
from megatron_chimed.launch.torchrun import worker_code
from megatron_chimed.tokenizer import load_tokenizer
from tests.distributed.hosts import loopback
from tests.integration import commands
from tests.integration.commands import ROOT, call
from tests.integration.hf_folders import make_hf
from tests.integration.test_convert_reward import make_scorer
from tests.unit.tokenizer.samples import LINES

ZIYA = ROOT / "examples/ziya_13b"
SCRIPTS = sorted((ROOT / "examples").glob("*/*.sh"))
STAGES = ("pretrain", "sft", "reward", "dpo")

FAILING_RANKS = """
import os, time
assert os.environ["GLOO_SOCKET_IFNAME"] == "lo" and os.environ["NCCL_SOCKET_IFNAME"] == "=lo"
if os.environ["RANK"] == "1":
    os._exit(78)
time.sleep(99)
"""
SAVING_RANKS = """
import os, pathlib, signal, sys, time
folder, rank = pathlib.Path(sys.argv[1]), os.environ["RANK"]

def save(*_):
    time.sleep(0.5)
    (folder / f"saved_{rank}").touch()
    os._exit(75)

signal.signal(signal.SIGTERM, save)
os.write(1, b"rank is ready\\n")  # in one piece: two ranks share the pipe
time.sleep(99)
"""


def launch(tmp_path, script, *words):
    path = tmp_path / "ranks.py"
    path.write_text(script)
    return commands.spawn(
        "launch", "--nproc-per-node", 2, "--run-folder", tmp_path / "run", path, *words
    )


@pytest.mark.timing
def test_the_launcher_ends_with_the_code_of_the_failed_rank(tmp_path):
    done = commands.finish(launch(tmp_path, FAILING_RANKS))
    assert done.code == 78, done.err
    assert "a rank ended with exit code 78; a restart would not fix it" in done.err


@pytest.mark.timing
def test_sigterm_to_launcher_and_torchrun_lets_both_ranks_save(tmp_path):
    launcher = launch(tmp_path, SAVING_RANKS, tmp_path)
    commands.read_until(launcher, "rank is ready")
    commands.read_until(launcher, "rank is ready")
    (agent,) = running_children(launcher.pid)
    for pid in (agent, launcher.pid):  # Slurm signals every process of a step
        os.kill(pid, signal.SIGTERM)
    done = commands.finish(launcher)
    assert done.code == 75 and "preempted by SIGTERM" in done.err, done.err
    assert (tmp_path / "saved_0").exists() and (tmp_path / "saved_1").exists()


@pytest.mark.timing
def test_a_node_that_stays_alone_says_so(tmp_path):
    words = ["--nnodes", 2, "--endpoint", loopback().endpoint]
    words += ["--join-seconds", 1, "--wait-seconds", 0, "--run-folder", tmp_path]
    done = commands.finish(commands.spawn("launch", *words, "tools/train.py"))
    assert done.code == 75, done.err
    assert "rendezvous failed: " in done.err
    assert "the other nodes did not join; no rendezvous for 0 s. Check that" in done.err


def failures(*codes):
    """What torchrun reports of ranks that ended one after the other."""
    return {
        rank: types.SimpleNamespace(exitcode=code, timestamp=rank)
        for rank, code in enumerate(codes)
    }


@pytest.mark.parametrize(
    ("codes", "code"), [((75, 78), 78), ((1, 75), 1), ((-9, 75), 137), ((75, -15, 17), 17)]
)
def test_the_code_that_no_restart_fixes_comes_first(codes, code):
    assert worker_code(failures(*codes)) == code


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (["--nnodes", 2], "--endpoint is not given"),
        (["--nnodes", 2, "--node-rank", 2], "count from 0 to nnodes - 1"),
        (["--nproc-per-node", 0], "do not fit"),
        (["--stall-seconds", "soon"], "--stall-seconds: 'soon' is not a number"),
        (["--stall-seconds", -1], "--stall-seconds is -1: set 0 or more"),
    ],
)
def test_wrong_flags(tmp_path, words, fragment):
    done = call("launch", "--run-folder", tmp_path / "run", *words, ROOT / "tools/train.py")
    assert done.code == 78 and fragment in done.err
    assert not (tmp_path / "run").exists()


def test_a_script_that_is_not_there(tmp_path):
    done = call("launch", "--run-folder", tmp_path / "run", "tools/tain.py")
    assert done.code == 78 and "the script tools/tain.py does not exist" in done.err


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with what the YAML files name, tiny, where the scripts are started."""
    folder = tmp_path_factory.mktemp("ziya") / "workplace"
    commands.make_project(folder, lines=LINES * 400)
    (folder / "checkpoints/ziya2_13b_hf").mkdir(parents=True)
    shutil.copy(folder / "tokenizer.model", folder / "checkpoints/ziya2_13b_hf")
    row = {
        "conversations": [{"from": "human", "value": "咳嗽"}, {"from": "gpt", "value": "多喝水"}]
    }
    (folder / "sft.jsonl").write_text((json.dumps(row, ensure_ascii=False) + "\n") * 20)
    words = commands.preprocess_words(folder, folder / "sft.jsonl", "sft")
    done = call("preprocess_data", *words, "--stage", "sft", "--template", "chimed")
    assert done.code == 0, done.err
    (folder / "data").mkdir()
    for stage, made in (("pretrain", "data"), ("sft", "sft")):
        for prefix in prefixes_of(stage):
            for path in folder.glob(f"{made}.*"):
                if path.is_file():
                    shutil.copy(path, f"{folder / prefix}{path.name.removeprefix(made)}")
    return folder


def prefixes_of(stage):
    data = yaml.safe_load((ZIYA / f"{stage}.yaml").read_text())["data"]
    for part in (data["train"], data["valid"]):
        yield from [part] if isinstance(part, str) else [source["prefix"] for source in part]


def run_script(name, *words, folder, example=ZIYA, **environment):
    return subprocess.run(
        ["bash", example / name, *words],
        cwd=folder,
        env=os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=commands.TIMEOUT_SECONDS,
    )


@pytest.mark.parametrize(
    ("name", "stage", "nodes", "layout"),
    [
        ("train.sh", "sft", 1, "TP4 x PP2 x DP1"),
        pytest.param("train.sh", "pretrain", 8, "TP2 x PP2 x DP16", marks=pytest.mark.full),
        ("slurm.sh", "pretrain", 10, "TP1 x PP2 x DP40"),
    ],
)
def test_a_script_plans_for_its_world(workplace, name, stage, nodes, layout):
    place = {"SLURM_SUBMIT_DIR": str(ROOT)} if name == "slurm.sh" else {"NNODES": str(nodes)}
    fresh = ("--checkpoint.load", "null")  # a 13B is not here; without it, all else is checked
    done = run_script(name, stage, "--dry-run", *fresh, folder=workplace, **place)
    assert done.returncode == 0, done.stderr
    assert f"torchrun --nnodes {nodes} --nproc-per-node 8 --rdzv-backend chimed" in done.stdout
    assert "--rdzv-conf node_rank=0,timeout=600" in done.stdout
    shown = " ".join(done.stdout.split())
    assert f"{layout} " in shown and f"{nodes * 8} ranks" in shown
    assert "configuration, inputs and layout are valid; nothing was trained" in shown


def test_a_plan_comes_before_the_list_of_what_is_missing(tmp_path):
    """As on a fresh clone: nothing that the YAML files name is there."""
    done = run_script("train.sh", "sft", "--dry-run", folder=tmp_path)
    assert done.returncode == 78
    assert "TP4 x PP2 x DP1" in done.stdout and "total" in done.stdout
    for key in ("tokenizer", "data.train", "checkpoint.load"):
        assert f"\n  - {key} " in done.stderr, done.stderr
    assert "valid" not in done.stdout


@pytest.mark.parametrize(
    ("example", "preset", "layout"),
    [
        ("qwen", "qwen3_8b", "TP4 x PP1 x DP2"),
        pytest.param("qwen", "qwen2_5_14b", "TP4 x PP2 x DP1", marks=pytest.mark.full),
        pytest.param("llama3", "llama3_1_8b", "TP4 x PP1 x DP2", marks=pytest.mark.full),
    ],
)
def test_examples_of_other_models_are_planned_too(tmp_path, example, preset, layout):
    done = run_script(
        "train.sh",
        "sft",
        "--dry-run",
        folder=tmp_path,
        example=ROOT / "examples" / example,
        PRESET=preset,
    )
    assert done.returncode == 78, "the inputs are missing"
    assert layout in done.stdout and "total" in done.stdout
    assert f"{PRESETS[preset]().num_parameters:,} parameters" in done.stdout


@pytest.mark.parametrize(
    ("example", "preset", "layout"),
    [
        ("qwen", "qwen3_8b", "TP2 x PP1 x DP32"),
        pytest.param("llama3", "llama3_1_8b", "TP2 x PP1 x DP32", marks=pytest.mark.full),
    ],
)
def test_slurm_scripts_of_other_models_plan_for_64_gpus(workplace, example, preset, layout):
    folder = ROOT / "examples" / example
    place = {"SLURM_SUBMIT_DIR": str(ROOT), "PRESET": preset}
    done = run_script("slurm.sh", "sft", "--dry-run", folder=workplace, example=folder, **place)
    assert done.returncode == 78, "the inputs are missing"
    assert f"srun --kill-on-bad-exit=1 bash {folder}/train.sh sft --dry-run" in done.stdout
    assert layout in done.stdout and f"--output-dir runs/{preset}_sft" in done.stdout


def test_rounds_are_planned_for_their_world(workplace):
    """With models of the example's names, tiny, as transformers would have made them."""
    tokenizer = workplace / "tokenizer.model"
    sizes = {"vocab_size": load_tokenizer(tokenizer).vocab_size, "num_key_value_heads": 4}
    sizes["max_position_embeddings"] = 4096
    for name, make in (("sft", make_hf), ("reward", make_scorer)):
        make(workplace / "hf" / name, **sizes)
        shutil.copy(tokenizer, workplace / "hf" / name)
        hf.import_hf(workplace / "hf" / name, workplace / f"runs/ziya2_13b_{name}")
    (workplace / "text").mkdir()
    for name in ("prompts", "prompts_heldout"):
        row = json.dumps({"prompt": f"咳嗽怎么办？{name}"}, ensure_ascii=False)
        (workplace / f"text/{name}.jsonl").write_text(row + "\n", encoding="utf-8")
    words = ("--template", "ziya", "--candidates.max_new_tokens", "16")
    done = run_script("train.sh", "rejection", "--dry-run", *words, folder=workplace)
    assert done.returncode == 0, done.stderr
    assert "torchrun --nnodes 1 --nproc-per-node 8 --rdzv-backend chimed" in done.stdout
    shown = " ".join(done.stdout.split())
    assert "rounds: 2; answers a round: 8 (8 x 1 prompts)" in shown
    assert "drawing and scoring on TP2 x PP1 x DP4" in shown and "TP4 x PP2 x DP1 " in shown
    assert "nothing was drawn" in shown


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("layout", sorted(ZIYA.glob("layouts/*.yaml")), ids=lambda path: path.stem)
def test_every_stage_fits_every_layout(layout, stage):
    files = [ZIYA / "base.yaml", layout, ZIYA / f"{stage}.yaml"]
    words = [word for path in files for word in ("--config", path)]
    config = commands.read_run_config(*words, "--model.max_position_embeddings", 4096)
    assert config.plan_layout(int(layout.stem)).world_size == int(layout.stem)


def test_a_node_is_no_host_unless_it_is_the_first(workplace):
    environment = {"NNODES": "8", "NODE_RANK": "3", "HEAD": "head"}
    words = ["sft", "--dry-run", "--model.recompute", "none", "--stage", "wrong"]
    done = run_script("train.sh", *words, folder=workplace, **environment)
    assert done.returncode == 78 and "stage" in done.stderr
    assert "--rdzv-endpoint head:29500 --rdzv-conf node_rank=3," in done.stdout
    assert "--model.recompute none" in done.stdout


def test_slurm_starts_a_launcher_on_each_node(workplace, tmp_path):
    stubs = {
        "scontrol": 'echo node7; [ "$1" = show ] || echo "scontrol $*" >> "$CALLS"; echo node8',
        "srun": 'shift; export SLURM_NODEID=1; exec "$@"',
        "python": 'printf "%s\\n" "$@" >> "$CALLS"; exit 75',
    }
    for name, body in stubs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_JOB_NUM_NODES": "8",
        "SLURM_JOB_NODELIST": "node[7-14]",
        "SLURM_JOB_ID": "123456",
        "PYTHON": "python",
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "CALLS": str(tmp_path / "calls"),
        "RUN": str(tmp_path / "run"),
    }
    (tmp_path / "run/launch").mkdir(parents=True)
    (tmp_path / "run/launch/node_0.json").write_text('{\n  "state": "preempted"\n}')
    done = run_script("slurm.sh", "sft", "--data.train", "a b", folder=workplace, **slurm)
    assert done.returncode == 75, done.stderr
    *words, requeued = (tmp_path / "calls").read_text().splitlines()
    assert requeued == "scontrol requeue 123456"
    assert words[1:7] == ["--nnodes", "8", "--node-rank", "1", "--nproc-per-node", "8"]
    assert words[words.index("--endpoint") + 1] == "node7:23456"
    assert words[-2:] == ["--data.train", "a b"]


@pytest.mark.parametrize("words", [["rockets"], []])
def test_an_unknown_stage_is_refused(words, tmp_path):
    done = run_script("train.sh", *words, folder=tmp_path)
    assert done.returncode != 0
    assert ("rockets.yaml does not exist" if words else "give a stage") in done.stderr


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.parent.name + path.stem)
def test_scripts_parse(path):
    checkers = [["bash", "-n", path]]
    if shutil.which("shellcheck"):
        checkers.append(["shellcheck", path])
    for checker in checkers:
        done = subprocess.run(checker, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stdout + done.stderr
    assert os.access(path, os.X_OK) and Path(path).read_text().startswith("#!/usr/bin/env bash\n")
