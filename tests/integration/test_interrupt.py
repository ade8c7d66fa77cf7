"""Ctrl-C as a user presses it: in one process, and under torchrun, which passes it on."""

import os
import signal
import subprocess
import sys

import pytest

from megatron_chimed.observe.logger import RunLogger
from tests.integration import commands
from tests.integration.commands import PYTHON, ROOT, call, finish, read_until, torchrun
from tests.integration.rejection import configure_rounds

pytestmark = [
    pytest.mark.timing,
    pytest.mark.skipif(sys.platform != "linux", reason="ends processes found in /proc"),
]


@pytest.fixture
def project(tmp_path):
    """Tokenizer, token files and `run.yaml` of a run of 6 steps."""
    return commands.make_project(tmp_path / "project").parent


def start(launcher, *words):
    """A command that pauses after step 3, in a group of its own as a terminal gives it."""
    return subprocess.Popen(
        [*launcher, "-m", "tests.integration.pausing", "3", *map(str, words)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def press(process):
    """What a terminal does at Ctrl-C: the whole foreground group gets SIGINT."""
    os.killpg(process.pid, signal.SIGINT)


@pytest.fixture
def interrupted(monkeypatch):
    """Runs a command in this process, with Ctrl-C in a step of training."""

    def run(at, tool, *words):
        original = RunLogger.step

        def step(self, record):
            original(self, record)
            if record.step == at:
                os.kill(os.getpid(), signal.SIGINT)

        with monkeypatch.context() as patched:
            patched.setattr(RunLogger, "step", step)
            return call(tool, *words)

    return run


def test_one_process_saves_the_current_step_and_resumes(project, interrupted):
    words = ["--config", project / "run.yaml", "--output-dir"]
    assert call("train", *words, project / "whole").code == 0
    done = interrupted(3, "train", *words, project / "run")
    saved = project / "run/checkpoints/iter_0000003"
    assert done.code == 130 and done.err == (
        f"InterruptError: stopped by Ctrl-C: step 3 is saved in {saved}. Start the same command "
        "again to resume.\n"
    )
    assert call("train", *words, project / "run").code == 0
    assert commands.train_losses(project / "run") == commands.train_losses(project / "whole")


def test_ctrl_c_in_the_last_step_of_a_round_ends_the_round_there(rejection_project, interrupted):
    words = ["--config", configure_rounds(rejection_project, "interrupted")]
    done = interrupted(2, "rejection_sample", *words)
    saved = rejection_project / "interrupted/round_01/train/checkpoints/iter_0000002"
    assert done.code == 130, done.out
    assert f"stopped by Ctrl-C: step 2 is saved in {saved}." in done.err
    before, _, after = done.out.partition("round 1: 2 steps of fine-tuning")
    assert "fresh answers" in before and "step 2/2" in after and "fresh answers" not in after
    done = call("rejection_sample", *words)
    assert done.code == 0 and f"resumed from {saved} at step 2" in done.out, done.err


def test_the_second_ctrl_c_quits_at_once_and_says_what_is_on_disk(project):
    words = ["--config", project / "run.yaml", "--checkpoint.save_interval", 2]
    process = start(PYTHON, "60", "train", *words)
    read_until(process, "paused")
    press(process)
    said = process.stderr.readline() + process.stderr.readline()
    assert "Ctrl-C: the current step is finished and saved, then all ranks end." in said
    press(process)
    done = finish(process)
    saved = project / "run/checkpoints/iter_0000002"
    assert done.code == 130
    assert done.err.strip() == (
        f"quit at once: the current step is lost; the same command resumes from {saved}."
    )


def test_two_ranks_under_torchrun_save_the_current_step_and_resume(project, gloo_pool):
    words = ["--config", project / "run.yaml", "--parallel.tensor_parallel_size", 2]
    words += ["--output-dir"]
    gloo_pool.run(commands.train_in_pool, 2, [*words, project / "whole"], init=False)
    process = start(torchrun(2), "0", "train", *words, project / "run")
    read_until(process, "paused")
    press(process)
    done = finish(process)
    saved = project / "run/checkpoints/iter_0000003"
    ours = [line for line in done.err.splitlines() if "step 3 is saved in" in line]
    assert len(ours) == 1, done.err
    assert f"InterruptError: stopped by Ctrl-C: step 3 is saved in {saved}." in ours[0]
    assert done.err.count("Ctrl-C: the current step is finished and saved") == 1
    assert "SIGKILL" not in done.err and done.code != 0
    gloo_pool.run(commands.train_in_pool, 2, [*words, project / "run"], init=False)
    assert commands.train_losses(project / "run") == commands.train_losses(project / "whole")
    assert commands.train_steps(project / "run") == [1, 2, 3, 4, 5, 6]
