"""The launcher, signals and other nodes: which workers save, which are killed, which exit code."""

import json
import signal
import textwrap

import pytest

from megatron_chimed.launch.node_states import NodeStates
from tests.unit.launch.agents import (
    HANGING_WORKER,
    ROOT,
    attempts,
    finish,
    is_gone,
    wait_for,
    wait_until_training,
)

pytestmark = pytest.mark.timing

SAVING_WORKER = """
import signal, time
from pathlib import Path

def save(*_):
    time.sleep({seconds})
    Path({saved!r}).touch()
    raise SystemExit(75)

signal.signal(signal.SIGTERM, save)
Path({ready!r}).touch()
time.sleep(99)
"""


def saving_agent(run, seconds=0.1):
    paths = {"saved": str(run / "saved"), "ready": str(run / "ready")}
    code = SAVING_WORKER.format(**paths, seconds=seconds)
    return f"sys.exit(worker({code!r}).wait())"


def test_sigterm_lets_workers_save_and_is_not_tried_again(supervise, tmp_path):
    launcher = supervise(saving_agent(tmp_path))
    wait_for(tmp_path / "ready")
    launcher.terminate()
    code, said = finish(launcher)
    assert code == 75 and "preempted by SIGTERM" in said and attempts(tmp_path) == 1
    assert (tmp_path / "saved").exists()
    assert json.loads((tmp_path / "launch/node_0.json").read_text())["state"] == "preempted"


def test_workers_that_do_not_end_within_the_grace_are_killed(supervise, tmp_path):
    launcher = supervise(saving_agent(tmp_path, seconds=99), grace_seconds=0.05)
    wait_for(tmp_path / "ready")
    launcher.terminate()
    code, said = finish(launcher)
    assert code == 75 and "did not end within 0.05 s and were killed" in said
    assert not (tmp_path / "saved").exists() and is_gone(tmp_path, 1)


def test_sigterm_between_attempts_ends_the_launcher(supervise, tmp_path):
    launcher = supervise("end_like_worker(75)", first_delay_seconds=60, max_delay_seconds=60)
    assert "restarting in 60 s" in launcher.stderr.readline()
    launcher.terminate()
    assert finish(launcher)[0] == 75 and attempts(tmp_path) == 1


def test_a_node_that_gives_up_stops_the_others_with_its_code(supervise, tmp_path):
    launcher = supervise(f"{HANGING_WORKER}.wait()", node_rank=1)
    wait_for(tmp_path / "worker_1")
    other = NodeStates(tmp_path, 0)
    other.write("failed", code=65, reason="a rank ended with exit code 65")
    code, said = finish(launcher)
    assert code == 65 and "node_0 stopped the job: a rank ended with exit code 65" in said
    assert is_gone(tmp_path, 1)


def test_workers_that_wait_for_those_of_another_node_are_killed(supervise, tmp_path):
    other = NodeStates(tmp_path, 0)
    agent = f"""
    if attempt > 1:
        end_like_worker(0)
    {HANGING_WORKER}.wait()
    """
    launcher = supervise(agent, node_rank=1, drain_seconds=0.3, max_restarts=99)
    wait_until_training(tmp_path, node_rank=1)
    other.count_failure()
    other.write("restarting", code=75, reason="a rank ended by signal 9")
    code, said = finish(launcher)
    assert (
        code == 0
        and "node_0 lost its workers, and this node's workers hang waiting for them" in said
    )


def test_a_run_that_another_node_completed_is_done(supervise, tmp_path):
    agent = f"""
    {HANGING_WORKER}
    while not (run / "go").exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
    """
    launcher = supervise(agent, node_rank=1)
    wait_until_training(tmp_path, node_rank=1)
    NodeStates(tmp_path, 0).write("done", code=0, reason="done")
    (tmp_path / "go").touch()
    code, said = finish(launcher)
    assert code == 0
    assert "node_0 reports that the run is done (here: " in said


def test_nobody_waits_for_nodes_that_are_done(supervise, tmp_path):
    agent = """
    (run / "ready").touch()
    time.sleep(99)
    """
    launcher = supervise(agent, node_rank=1)
    wait_for(tmp_path / "ready")
    NodeStates(tmp_path, 0).write("done", code=0, reason="done")
    code, said = finish(launcher)
    assert code == 0
    assert "node_0 reports that the run is done (here: the other nodes are done)" in said


def test_a_first_interrupt_lets_workers_save_and_a_second_kills(supervise, tmp_path):
    agent = f"""
    {HANGING_WORKER}
    time.sleep(99)
    """
    launcher = supervise(agent)
    wait_until_training(tmp_path)
    (tmp_path / "checkpoints/iter_0000007").mkdir(parents=True)
    launcher.send_signal(signal.SIGINT)
    first = launcher.stderr.readline()
    assert "^C: waiting for the workers to save and end; ^C again kills" in first
    launcher.send_signal(signal.SIGINT)
    code, said = finish(launcher)
    assert code == 130
    assert f"killed by a second ^C; {tmp_path} holds the checkpoint of step 7" in said
    assert is_gone(tmp_path, 1)


def test_an_unwatched_command_answers_interrupts_itself(supervise, tmp_path):
    agent = """
    code = "import signal, sys; signal.signal(signal.SIGINT, lambda *_: sys.exit(9)); "
    code += "open(sys.argv[1], 'w'); signal.pause()"
    sys.exit(worker(code, str(run / "ready")).wait())
    """
    launcher = supervise(agent, stall_seconds=1e999, max_restarts=0)
    wait_for(tmp_path / "ready")
    launcher.send_signal(signal.SIGINT)
    code, said = finish(launcher)
    assert code == 9 and "no restarts are allowed" in said and "^C" not in said


@pytest.mark.parametrize(("ends_with", "code"), [(73, 73), (0, 0), (75, 75), (143, 75), (130, 75)])
def test_a_stop_hides_no_error_and_a_signal_is_none(supervise, tmp_path, ends_with, code):
    """73: the worker could not save. 143: SIGTERM came before it had a handler."""
    agent = f"""
    {HANGING_WORKER}.wait()
    os._exit({ends_with})
    """
    launcher = supervise(agent)
    wait_until_training(tmp_path)
    launcher.send_signal(signal.SIGTERM)
    assert finish(launcher)[0] == code


def test_interrupted_workers_are_not_started_again(supervise, tmp_path):
    code, said = finish(supervise("end_like_worker(130)"))
    assert code == 130 and attempts(tmp_path) == 1 and "interrupted" in said


def test_what_an_earlier_job_left_decides_nothing(supervise, tmp_path):
    NodeStates(tmp_path, 0).write("failed", code=65, reason="long ago")
    assert finish(supervise("end_like_worker(0)", node_rank=1))[0] == 0


INTERRUPTIBLE = f"""
sys.path.insert(0, {str(ROOT)!r})
from megatron_chimed.errors import InterruptError
from megatron_chimed.launch.process_tree import interrupt_when_parent_dies
"""


def test_a_killed_launcher_interrupts_its_agent(supervise, tmp_path):
    agent = f"""
    {textwrap.indent(INTERRUPTIBLE, "    ")}
    interrupt_when_parent_dies(int(sys.argv[1]))
    try:
        (run / "ready").touch()
        time.sleep(99)
    except KeyboardInterrupt:
        (run / "interrupted").touch()
    """
    launcher = supervise(agent)
    wait_for(tmp_path / "ready")
    launcher.kill()
    wait_for(tmp_path / "interrupted")


def test_a_launcher_killed_while_its_agent_starts_interrupts_it_too(supervise, tmp_path):
    """The kernel sends nothing for a parent that died before it was asked to."""
    agent = f"""
    {textwrap.indent(INTERRUPTIBLE, "    ")}
    (run / "ready").touch()
    while os.getppid() == int(sys.argv[1]):
        time.sleep(0.01)
    try:
        interrupt_when_parent_dies(int(sys.argv[1]))
        time.sleep(99)
    except InterruptError:
        (run / "interrupted").touch()
    """
    launcher = supervise(agent)
    wait_for(tmp_path / "ready")
    launcher.kill()
    wait_for(tmp_path / "interrupted")
