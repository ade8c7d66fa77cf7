"""The quickstart's script: how it runs, logs and stops; and the command line of its checks."""

import collections
import dataclasses
import functools
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from examples.quickstart.checks import __main__ as checks
from megatron_chimed.config.parsing import ConfigParser
from megatron_chimed.config.run_config import RunConfig
from megatron_chimed.data.templates import ALL_TEMPLATES
from megatron_chimed.rejection.config import RejectionConfig
from tools import generate, inspect_dataset, preprocess_data, train_tokenizer

ROOT = Path(__file__).resolve().parents[3]
QUICKSTART = ROOT / "examples/quickstart"
SCRIPTS = [QUICKSTART / "run.sh", *sorted((QUICKSTART / "checks").glob("*.sh"))]
TIMEOUT_SECONDS = 60


def start(folder, *lines):
    """Starts a demo in a folder that consists of these lines."""
    script = [
        "set -euo pipefail",
        f"source {QUICKSTART / 'checks/shell.sh'}",
        f"start_demo {folder}",
        *lines,
    ]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.Popen(
        ["bash", "-c", "\n".join(script)],
        env=os.environ | {"PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A test run in the background ignores SIGINT, which is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )


def finish(demo):
    out, err = demo.communicate(timeout=TIMEOUT_SECONDS)
    return demo.returncode, out, err


def test_a_command_is_printed_run_and_logged(tmp_path):
    folder = tmp_path / "out"
    code = "import sys; print('a'); print('W1 torchrun'); print('b', file=sys.stderr)"
    demo = start(folder, 'step "try it"', f'run python -c "{code}"', 'step "end"')
    returncode, out, err = finish(demo)
    assert returncode == 0 and err == ""
    lines = out.splitlines()
    assert lines[1].startswith("[1] try it  (") and lines[-1].startswith("[2] end  (")
    assert lines[2].startswith("    $ python -c ")
    assert sorted(lines[3:5]) == ["      a", "      b"] and "torchrun" not in "".join(lines[3:])
    assert "W1 torchrun\n" in (folder / "logs/01.log").read_text()


def test_a_command_that_fails_stops_the_demo_and_names_its_log(tmp_path):
    folder = tmp_path / "out"
    demo = start(folder, 'step "fail"', "run python -m json.tool missing.json", "echo never")
    returncode, out, err = finish(demo)
    assert returncode != 0 and "$ python -m json.tool missing.json" in out
    assert f"step 1 failed: the command above ended with code {returncode}. Read {folder}" in err
    assert "missing.json" in (folder / "logs/01.log").read_text() and "never" not in out


@pytest.mark.timing
def test_ctrl_c_stops_the_running_command_and_the_demo(tmp_path):
    slow = "import time; print('up', flush=True); time.sleep(60)"
    demo = start(tmp_path / "out", 'step "wait"', f'run python -c "{slow}"', "echo never")
    while "up" not in demo.stdout.readline().split():
        pass
    os.killpg(demo.pid, signal.SIGINT)
    returncode, out, err = finish(demo)
    assert returncode == 130 and "never" not in out
    assert err.startswith("InterruptError: the demo stopped in step 1, after ")
    assert err.endswith(f"Its output is in {tmp_path / 'out'}; the same command starts over.\n")


def test_a_folder_of_others_is_not_cleared(tmp_path):
    (tmp_path / "thesis.tex").touch()
    returncode, _, err = finish(start(tmp_path))
    assert returncode == 78 and "was not made by this demo" in err
    assert (tmp_path / "thesis.tex").exists()


def test_a_folder_of_the_demo_is_cleared(tmp_path):
    folder = tmp_path / "out"
    assert finish(start(folder, 'touch "$OUT/old"'))[0] == 0
    assert (folder / "old").exists()
    assert finish(start(folder))[0] == 0
    assert sorted(path.name for path in folder.iterdir()) == [".quickstart", "data", "logs"]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse(path):
    checkers = [["bash", "-n"], *([["shellcheck", "-x"]] if shutil.which("shellcheck") else [])]
    for checker in checkers:
        done = subprocess.run([*checker, path], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_script_names_files_that_exist():
    words = (QUICKSTART / "run.sh").read_text().split()
    named = {word for word in words if word.startswith(("tools/", "examples/"))}
    assert len(named) > 8
    assert [word for word in named if not (ROOT / word).exists()] == []


def read_config(kind, argv):
    parser = ConfigParser(kind, "command")
    return parser.config(parser.parse_args(argv))


READERS = {
    "train_tokenizer.py": train_tokenizer.parse_arguments,
    "preprocess_data.py": preprocess_data.parse_arguments,
    "inspect_dataset.py": inspect_dataset.parse_arguments,
    "generate.py": generate.parse_arguments,
    "train.py": functools.partial(read_config, RunConfig),
    "rejection_sample.py": functools.partial(read_config, RejectionConfig),
}


@pytest.fixture
def commands(tmp_path):
    """Runs the script with a `python` that does nothing; the options of each command, by tool."""
    folder = tmp_path / "out"
    checkpoints = folder / "run/checkpoints"
    fake = tmp_path / "bin/python"
    fake.parent.mkdir()
    fake.write_text(f"#!/bin/sh\nmkdir -p {checkpoints}\necho iter_0000300 > {checkpoints}/best\n")
    fake.chmod(0o755)

    def run(model):
        done = subprocess.run(
            ["bash", QUICKSTART / "run.sh", folder],
            env=os.environ | {"PATH": f"{fake.parent}:{os.environ['PATH']}"} | model,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        found = collections.defaultdict(list)
        for line in done.stdout.splitlines():
            words = shlex.split(line.removeprefix("    $ ")) if line.startswith("    $ ") else []
            tools = [place for place, word in enumerate(words) if word.startswith("tools/")]
            last = tools[-1] if tools else 0  # the tool that the launcher starts comes after it
            name = Path(words[last]).name if words else ""
            if name in READERS:
                found[name].append(READERS[name](words[last + 1 :]))
        assert set(found) == set(READERS)
        return found

    return run


@pytest.mark.parametrize(
    ("given", "kind", "template", "is_qwen3"),
    [
        ({}, "sentencepiece", "ziya", False),
        ({"MODEL": "qwen"}, "byte_bpe", "qwen3_nothink", True),
    ],
    ids=["default", "qwen"],
)
def test_every_command_is_of_one_model(commands, monkeypatch, given, kind, template, is_qwen3):
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("MODEL", raising=False)
    found = commands(given)
    assert [options.kind for options in found["train_tokenizer.py"]] == [kind]
    templates = {options.template for options in found["preprocess_data.py"]}
    assert templates == {None, template} and template in ALL_TEMPLATES
    first, second, sft, reward = found["train.py"]
    assert first.model == second.model == sft.model and first.model.qk_norm == is_qwen3
    own = {"head": first.model.head, "hidden_dropout": first.model.hidden_dropout}
    assert first.model == dataclasses.replace(reward.model, **own)
    (rejection,) = found["rejection_sample.py"]
    again = [word for path in rejection.training.config for word in ("--config", path)]
    assert read_config(RunConfig, again).model == sft.model


def test_another_model_is_refused(tmp_path):
    (tmp_path / "old").touch()
    done = subprocess.run(
        ["bash", QUICKSTART / "run.sh", tmp_path],
        env=os.environ | {"MODEL": "gpt"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 78 and (tmp_path / "old").exists()
    assert done.stderr == "ConfigError: MODEL is gpt. Set it to ziya or qwen.\n"


def test_the_checks_keep_their_findings_for_the_summary(tmp_path, capsys):
    (tmp_path / "sft").mkdir()
    events = [{"kind": "valid", "step": step, "loss": loss} for step, loss in ((0, 5.0), (9, 3.0))]
    lines = "".join(json.dumps(event) + "\n" for event in events)
    (tmp_path / "sft/metrics.jsonl").write_text(lines)
    assert checks.main(["sft", str(tmp_path)]) == 0
    assert "5.000 before, 3.000 after" in capsys.readouterr().out
    assert checks.main(["summary", str(tmp_path)]) == 0
    assert "5.000    3.000  SFT: loss of answers" in capsys.readouterr().out


def test_a_stage_that_changed_nothing_ends_with_an_error(tmp_path, capsys):
    (tmp_path / "sft").mkdir()
    events = [{"kind": "valid", "step": step, "loss": 5.0} for step in (0, 9)]
    lines = "".join(json.dumps(event) + "\n" for event in events)
    (tmp_path / "sft/metrics.jsonl").write_text(lines)
    assert checks.main(["sft", str(tmp_path)]) == 1
    assert "CheckError: fine-tuning did not lower the loss" in capsys.readouterr().err
