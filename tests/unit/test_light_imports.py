"""Packages that tools start with load no torch, and no tool loads it before it has parsed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.layering import LIGHT_OWNERS, PACKAGE

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
IMPORT_ALL = """
import importlib, pkgutil, sys
owner = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(getattr(owner, "__path__", []), owner.__name__ + "."):
    importlib.import_module(module.name)
loaded = sorted(name for name in ("torch", "megatron.core", "transformers") if name in sys.modules)
print("loaded:", *loaded)
"""


@pytest.mark.parametrize("owner", sorted(LIGHT_OWNERS))
def test_importing_all_modules_of_a_light_package_loads_no_torch(owner):
    result = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, f"{PACKAGE}.{owner}"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "loaded:"


RUN_TOOL = """
import json, runpy, sys
tool, sys.argv = sys.argv[1], sys.argv[1:]
try:
    runpy.run_path(tool, run_name="__main__")
    code = 0
except SystemExit as ended:
    code = ended.code
heavy = [name for name in ("torch", "megatron.core", "transformers") if name in sys.modules]
print(json.dumps([code, heavy]), file=sys.stderr)
"""
TOOLS = {path.stem: path for path in sorted((ROOT / "tools").glob("*.py"))}
SUBCOMMANDS = {"convert_checkpoint": ["export-hf"], "inspect_dataset": ["view", "P"]}
WRONG_VALUES = {
    "average_checkpoints": ["--run", "R", "--output", "O", "--last", "many"],
    "convert_checkpoint": ["--checkpoint", "C", "--output", "O", "--max-shard-gb", "many"],
    "doctor": ["extra"],
    "evaluate": ["--seed", "soon"],
    "generate": ["--checkpoint", "C", "--prompt", "P", "--max-batch", "many"],
    "inspect_checkpoint": ["nowhere"],
    "inspect_dataset": ["--count", "many"],
    "launch": ["--nnodes", "many", "tools/train.py"],
    "merge_datasets": ["--inputs", "nowhere", "--output-prefix", "Q"],
    "preprocess_data": ["--input", "I", "--tokenizer", "T", "--output-prefix", "Q"]
    + ["--workers", "many"],
    "rejection_sample": ["--rounds", "many"],
    "run_pipeline": ["--config", "nowhere.yaml"],
    "score": ["--checkpoint", "C", "--input", "I", "--output", "O", "--batch-tokens", "many"],
    "train": ["--output-dir", "O", "--tokenizer", "T", "--data.train", "P"]
    + ["--training.train_steps", "many"],
    "train_tokenizer": ["--input", "I", "--output", "O", "--vocab-size", "many"],
}
FIRST_FLAGS = {"doctor": "--helq", "inspect_checkpoint": "--verifi", "run_pipeline": "--plam"}


def run_tool(name, words):
    """(exit code, heavy modules, stdout, stderr without the report)"""
    done = subprocess.run(
        [sys.executable, "-c", RUN_TOOL, f"tools/{name}.py", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=60,
    )
    *told, report = done.stderr.splitlines()
    return *json.loads(report), done.stdout, "\n".join(told)


@pytest.mark.parametrize("name", TOOLS)
def test_help_loads_no_torch_and_shows_commands_that_can_be_pasted(name):
    code, heavy, shown, told = run_tool(name, ["--help"])
    assert (code, heavy, told) == (0, [], "")
    # As they stand in the file, with the backslashes that continue a command on the next line.
    text = TOOLS[name].read_text(encoding="utf-8").split('"""')[1]
    commands = [line for line in text.splitlines() if line.startswith("    ")]
    assert commands and all(line in shown.splitlines() for line in commands)


@pytest.mark.parametrize("name", TOOLS)
def test_a_misspelt_flag_loads_no_torch(name):
    flag = FIRST_FLAGS.get(name, "--outptu" if name != "launch" else "--nnodez")
    code, heavy, _, told = run_tool(name, [*SUBCOMMANDS.get(name, []), flag, "x"])
    assert (code, heavy) == (78, [])
    assert told.startswith(f"ConfigError: {flag} is unknown"), told


@pytest.mark.parametrize("name", TOOLS)
def test_a_wrong_value_loads_no_torch(name):
    code, heavy, _, told = run_tool(name, [*SUBCOMMANDS.get(name, []), *WRONG_VALUES[name]])
    assert code in (74, 78) and heavy == [], told
    assert "Traceback" not in told and "class" not in told and told.count("\n") == 0
    assert WRONG_VALUES[name][-1] in told or name in ("launch", "merge_datasets")


@pytest.mark.parametrize(
    ("name", "words", "told"),
    [
        ("generate", ["--tensor-parallel-size", "2"], "--parallel.tensor_parallel_size"),
        ("score", ["--pipeline-parallel-size", "2"], "--parallel.pipeline_parallel_size"),
        ("train", ["--output_dir", "O"], "--output-dir"),
        ("rejection_sample", ["--reward_model", "O"], "--reward-model"),
        ("inspect_dataset", ["--layout", "text"], "--style"),
    ],
)
def test_an_old_spelling_is_answered_with_the_new_one(name, words, told):
    code, heavy, _, error = run_tool(name, [*SUBCOMMANDS.get(name, []), *words])
    assert (code, heavy) == (78, [])
    assert error.startswith(f"ConfigError: {words[0]} is called {told} now. See")


def test_a_workflow_is_checked_without_torch(tmp_path):
    steps = {"a": {"kind": "train", "settings": {"training": {"train_step": 1}}}}
    path = tmp_path / "workflow.yaml"
    path.write_text(json.dumps({"folder": str(tmp_path / "w"), "steps": steps}))
    code, heavy, _, told = run_tool("run_pipeline", ["--config", str(path), "--plan"])
    assert (code, heavy) == (78, [])
    assert "'training.train_step' (did you mean train_steps?)" in told
