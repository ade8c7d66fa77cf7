"""Launchers over agents of a few lines, shared by the tests of the launcher."""

import json
import subprocess
import sys
import textwrap
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]

TIMEOUT_SECONDS = 60
# Short where the launcher itself acts; long where it waits for others, however busy the machine is.
LIMITS = {
    "join_seconds": 60,
    "drain_seconds": 60,
    "stall_seconds": 60,
    "poll_seconds": 0.01,
    "refresh_seconds": 0.02,
    "first_delay_seconds": 0.01,
}

# Functions for agents: count the attempts, start a worker as torchrun does, save.
PRELUDE = """
import os, signal, subprocess, sys, time
from pathlib import Path
run, own = Path({run!r}), Path({own!r})
attempt = len(list(run.glob("attempt_*"))) + 1
(run / f"attempt_{{attempt}}").touch()

def save(step):
    (run / f"checkpoints/iter_{{step:07d}}").mkdir(parents=True)

def worker(code, *words):
    made = subprocess.Popen(
        [sys.executable, "-S", "-c", code, *words], stdin=subprocess.PIPE, start_new_session=True
    )
    (run / f"worker_{{attempt}}").write_text(str(made.pid))
    return made

def end_like_worker(code):
    made = worker("import sys; sys.stdin.read(1); sys.exit(int(sys.argv[1]))", str(code))
    while "training" not in own.read_text():  # the launcher has seen the worker
        time.sleep(0.005)
    made.stdin.close()
    sys.exit(made.wait())
"""
HANGING_WORKER = "worker('import time; time.sleep(99)')"


def start_launcher(tmp_path, agent, node_rank=0, **limits):
    """Starts a launcher over an agent's code; the agent's argument is the launcher's process id.

    The launcher has a process of its own since it adopts orphans.
    """
    own = str(tmp_path / f"launch/node_{node_rank}.json")
    code = PRELUDE.format(run=str(tmp_path), own=own) + textwrap.dedent(agent)
    command = [sys.executable, "-S", "-c", code]
    script = (
        "import json, os, pathlib, sys\n"
        "from megatron_chimed.errors import run_command\n"
        "from megatron_chimed.launch.limits import NOT_RETRIED, Limits\n"
        "from megatron_chimed.launch.supervise import Supervisor\n"
        "command, folder, rank, limits = json.loads(sys.argv[1])\n"
        "command.append(str(os.getpid()))\n"
        "sys.exit(run_command(Supervisor(command, run_folder=pathlib.Path(folder), "
        "node_rank=rank, limits=Limits(**limits)).run))\n"
    )
    words = json.dumps([command, str(tmp_path), node_rank, LIMITS | limits])
    return subprocess.Popen(
        [sys.executable, "-c", script, words], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )


def finish(launcher):
    """Waits until the launcher ends; returns its exit code and what it printed."""
    printed = launcher.communicate(timeout=TIMEOUT_SECONDS)[1]
    return launcher.returncode, printed


def attempts(run):
    return len(list(run.glob("attempt_*")))


def is_gone(run, attempt):
    return not Path(f"/proc/{(run / f'worker_{attempt}').read_text()}").exists()


def wait_until(condition):
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.01)


def wait_for(path):
    wait_until(path.exists)


def wait_until_training(run, node_rank=0):
    """Waits until the launcher of `node_rank` has seen its workers."""
    record = run / f"launch/node_{node_rank}.json"
    wait_until(lambda: record.exists() and "training" in record.read_text())
