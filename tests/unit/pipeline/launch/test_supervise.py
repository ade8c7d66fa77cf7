"""The launcher with agents of a few lines: what each does, what becomes of it, and how it ends."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from megatron_chimed.pipeline.launch.limits import NOT_RETRIED, Limits
from megatron_chimed.pipeline.launch.processes import running_children
from megatron_chimed.pipeline.launch.roster import Roster

ROOT = Path(__file__).resolve().parents[4]

TIMEOUT_SECONDS = 30
QUICK = {
    "join_seconds": 1,
    "drain_seconds": 0.3,
    "stall_seconds": 0.6,
    "poll_seconds": 0.01,
    "look_seconds": 0.02,
    "first_delay_seconds": 0.01,
}

# What an agent may call: it counts its attempts, has a worker as torchrun does, saves.
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


@pytest.fixture
def supervise(tmp_path):
    """Runs a launcher, in a process of its own since it adopts orphans, over an agent's code."""
    started = []

    def start(agent, node_rank=0, **limits):
        own = str(tmp_path / f"launch/node_{node_rank}.json")
        code = PRELUDE.format(run=str(tmp_path), own=own) + textwrap.dedent(agent)
        command = [sys.executable, "-S", "-c", code]
        script = (
            "import sys, json, pathlib\n"
            "from megatron_chimed.errors import run_command\n"
            "from megatron_chimed.pipeline.launch.limits import NOT_RETRIED, Limits\n"
            "from megatron_chimed.pipeline.launch.supervise import Supervisor\n"
            "command, folder, rank, limits = json.loads(sys.argv[1])\n"
            "sys.exit(run_command(Supervisor(command, run_folder=pathlib.Path(folder), "
            "node_rank=rank, limits=Limits(**limits)).run))\n"
        )
        words = json.dumps([command, str(tmp_path), node_rank, QUICK | limits])
        launcher = subprocess.Popen(
            [sys.executable, "-c", script, words], cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        started.append(launcher)
        return launcher

    yield start
    for launcher in started:
        launcher.kill()
        launcher.communicate()


def finish(launcher):
    """Exit code and what was said; afterwards nothing of it runs."""
    said = launcher.communicate(timeout=TIMEOUT_SECONDS)[1]
    return launcher.returncode, said


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


def test_a_finished_run_ends_with_0(supervise, tmp_path):
    code, said = finish(supervise("end_like_worker(0)"))
    assert code == 0 and attempts(tmp_path) == 1 and "done" in said
    assert json.loads((tmp_path / "launch/node_0.json").read_text())["state"] == "done"


def test_codes_that_are_not_tried_again():
    assert sorted(NOT_RETRIED) == [17, 65, 70, 77, 78]


@pytest.mark.parametrize("code", [17, 78])
def test_what_a_restart_cannot_mend_is_not_tried_again(supervise, tmp_path, code):
    ended, said = finish(supervise(f"end_like_worker({code})"))
    assert ended == code and attempts(tmp_path) == 1
    assert f"a rank ended with exit code {code}; a restart would not mend it" in said
    record = json.loads((tmp_path / "launch/node_0.json").read_text())
    assert (record["state"], record["code"]) == ("failed", code)


@pytest.mark.parametrize("code", [1, 75, 128 + signal.SIGSEGV])
def test_without_a_newer_checkpoint_restarts_are_counted(supervise, tmp_path, code):
    ended, said = finish(supervise(f"end_like_worker({code})", max_restarts=2))
    assert ended == code and attempts(tmp_path) == 3
    assert "2 restarts in a row brought no checkpoint newer than the start" in said
    how = "by signal 11" if code > 128 else f"with exit code {code}"
    assert f"a rank ended {how}; trying again" in said


def test_a_newer_checkpoint_renews_the_restarts(supervise, tmp_path):
    agent = """
    if attempt <= 6:
        save(attempt)
    end_like_worker(0 if attempt == 20 else 75)
    """
    code, said = finish(supervise(agent, max_restarts=2))
    assert code == 75 and attempts(tmp_path) == 6 + 2
    assert "no checkpoint newer than that of step 6" in said


def test_the_workers_of_a_killed_agent_are_killed(supervise, tmp_path):
    agent = f"""
    if attempt == 2:
        end_like_worker(0)
    {HANGING_WORKER}
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGKILL)
    """
    code, said = finish(supervise(agent))
    assert code == 0 and "the agent was killed by signal 9" in said
    assert is_gone(tmp_path, 1)


def test_hanging_workers_are_killed_and_started_again(supervise, tmp_path):
    agent = f"""
    if attempt == 2:
        end_like_worker(0)
    {HANGING_WORKER}.wait()
    """
    code, said = finish(supervise(agent))
    assert code == 0 and is_gone(tmp_path, 1)
    assert "the workers hang: they have written nothing for 0.6 s" in said


def test_workers_that_write_do_not_hang(supervise, tmp_path):
    code = f"""
import time
for _ in range(30):
    time.sleep(0.05)
    open({str(tmp_path / "metrics.jsonl")!r}, "a").write("x")
"""
    assert finish(supervise(f"sys.exit(worker({code!r}).wait())", stall_seconds=1.2))[0] == 0
    assert attempts(tmp_path) == 1


def test_an_agent_that_hangs_after_its_workers_is_killed(supervise, tmp_path):
    agent = """
    if attempt == 2:
        end_like_worker(0)
    worker("import time; time.sleep(1)").wait()
    time.sleep(99)
    """
    code, said = finish(supervise(agent, join_seconds=20, stall_seconds=20))
    assert code == 0 and "all workers ended, but the agent hangs" in said


def test_a_wait_for_the_other_nodes_costs_time_and_no_restarts(supervise, tmp_path):
    agent = "sys.exit(69) if attempt < 6 else end_like_worker(0)"
    code, said = finish(supervise(agent, max_restarts=1))
    assert code == 0 and attempts(tmp_path) == 6
    assert "did not meet the other nodes; trying again" in said


def test_nodes_that_never_meet_are_given_up(supervise):
    code, said = finish(supervise("sys.exit(69)", wait_seconds=0.3))
    assert code == 75 and "the nodes have not met for 0.3 s" in said


def test_an_agent_that_hangs_in_the_rendezvous_is_killed(supervise):
    code, said = finish(supervise("time.sleep(99)", join_seconds=0, wait_seconds=0))
    assert code == 75 and "the agent neither met the other nodes nor gave up" in said


def test_an_agent_that_cannot_start_is_no_wait(supervise, tmp_path):
    code, said = finish(supervise("sys.exit(1)", max_restarts=1))
    assert code == 1 and attempts(tmp_path) == 2


SAVING_WORKER = """
import signal, time
from pathlib import Path

def save(*_):
    time.sleep(0.3)
    Path({saved!r}).touch()
    raise SystemExit(75)

signal.signal(signal.SIGTERM, save)
Path({ready!r}).touch()
time.sleep(99)
"""


def saving_agent(run):
    code = SAVING_WORKER.format(saved=str(run / "saved"), ready=str(run / "ready"))
    return f"sys.exit(worker({code!r}).wait())"


def test_sigterm_lets_workers_save_and_is_not_tried_again(supervise, tmp_path):
    launcher = supervise(saving_agent(tmp_path), stall_seconds=60)
    wait_for(tmp_path / "ready")
    launcher.terminate()
    code, said = finish(launcher)
    assert code == 75 and "preempted by SIGTERM" in said and attempts(tmp_path) == 1
    assert (tmp_path / "saved").exists()
    assert json.loads((tmp_path / "launch/node_0.json").read_text())["state"] == "preempted"


def test_workers_that_do_not_end_within_the_grace_are_killed(supervise, tmp_path):
    launcher = supervise(saving_agent(tmp_path), stall_seconds=60, grace_seconds=0.05)
    wait_for(tmp_path / "ready")
    launcher.terminate()
    code, said = finish(launcher)
    assert code == 75 and "did not end within 0.05 s and were killed" in said
    assert not (tmp_path / "saved").exists() and is_gone(tmp_path, 1)


def test_sigterm_between_attempts_ends_the_launcher(supervise, tmp_path):
    launcher = supervise("end_like_worker(75)", first_delay_seconds=60, max_delay_seconds=60)
    assert "trying again in 60 s" in launcher.stderr.readline()
    launcher.terminate()
    assert finish(launcher)[0] == 75 and attempts(tmp_path) == 1


def test_a_node_that_gives_up_stops_the_others_with_its_code(supervise, tmp_path):
    launcher = supervise(f"{HANGING_WORKER}.wait()", node_rank=1, stall_seconds=60)
    wait_for(tmp_path / "worker_1")
    other = Roster(tmp_path, 0)
    other.write("failed", code=65, reason="a rank ended with exit code 65")
    code, said = finish(launcher)
    assert code == 65 and "node_0 stopped the job: a rank ended with exit code 65" in said
    assert is_gone(tmp_path, 1)


def test_workers_that_wait_for_those_of_another_node_are_killed(supervise, tmp_path):
    other = Roster(tmp_path, 0)
    agent = f"""
    if attempt == 2:
        end_like_worker(0)
    {HANGING_WORKER}.wait()
    """
    launcher = supervise(agent, node_rank=1, stall_seconds=60)
    wait_for(tmp_path / "worker_1")
    record = tmp_path / "launch/node_1.json"
    wait_until(lambda: "training" in record.read_text())
    other.count_failure()
    other.write("restarting", code=75, reason="a rank ended by signal 9")
    code, said = finish(launcher)
    assert code == 0 and "node_0 lost its workers, and those of this node wait for them" in said


def test_a_run_that_another_node_completed_is_done(supervise, tmp_path):
    agent = f"""
    {HANGING_WORKER}
    (run / "ready").touch()
    while not (run / "go").exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
    """
    launcher = supervise(agent, node_rank=1, stall_seconds=60)
    wait_for(tmp_path / "ready")
    Roster(tmp_path, 0).write("done", code=0, reason="done")
    (tmp_path / "go").touch()
    code, said = finish(launcher)
    assert code == 0 and "done, says node_0 (the agent was killed by signal 9 here)" in said


def test_nobody_waits_for_nodes_that_are_done(supervise, tmp_path):
    agent = """
    (run / "ready").touch()
    time.sleep(99)
    """
    launcher = supervise(agent, node_rank=1, join_seconds=60)
    wait_for(tmp_path / "ready")
    Roster(tmp_path, 0).write("done", code=0, reason="done")
    code, said = finish(launcher)
    assert code == 0 and "done, says node_0 (nobody is left to meet here)" in said


def test_a_first_interrupt_lets_workers_save_and_a_second_kills(supervise, tmp_path):
    agent = f"""
    {HANGING_WORKER}
    (run / "ready").touch()
    time.sleep(99)
    """
    launcher = supervise(agent, stall_seconds=60, grace_seconds=60)
    own = tmp_path / "launch/node_0.json"
    wait_until(lambda: own.exists() and "training" in own.read_text())
    (tmp_path / "checkpoints/iter_0000007").mkdir(parents=True)
    launcher.send_signal(signal.SIGINT)
    time.sleep(0.2)
    launcher.send_signal(signal.SIGINT)
    code, said = finish(launcher)
    assert code == 130 and "^C: waiting for the workers to save and end; ^C again kills" in said
    assert f"killed by a second ^C; {tmp_path} holds checkpoint of step 7" in said
    assert is_gone(tmp_path, 1)


def test_an_unwatched_command_answers_interrupts_itself(supervise, tmp_path):
    agent = """
    code = "import signal, sys; signal.signal(signal.SIGINT, lambda *_: sys.exit(9)); "
    code += "open(sys.argv[1], 'w'); signal.pause()"
    sys.exit(worker(code, str(run / "ready")).wait())
    """
    launcher = supervise(agent, stall_seconds=1e999, max_restarts=0, join_seconds=20)
    wait_for(tmp_path / "ready")
    launcher.send_signal(signal.SIGINT)
    code, said = finish(launcher)
    assert code == 9 and "nothing is tried again" in said and "^C" not in said


@pytest.mark.parametrize(("ends_with", "code"), [(73, 73), (0, 0), (75, 75), (143, 75), (130, 75)])
def test_a_stop_hides_no_error_and_a_signal_is_none(supervise, tmp_path, ends_with, code):
    """73: the worker could not save. 143: SIGTERM came before it listened."""
    agent = f"""
    worker("import time; time.sleep(99)")
    (run / "ready").touch()
    while not (run / "go").exists():
        time.sleep(0.01)
    os._exit({ends_with})
    """
    launcher = supervise(agent, stall_seconds=60, grace_seconds=60, join_seconds=20)
    own = tmp_path / "launch/node_0.json"
    wait_until(lambda: own.exists() and "training" in own.read_text())
    launcher.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    (tmp_path / "go").touch()
    assert finish(launcher)[0] == code


def test_interrupted_workers_are_not_started_again(supervise, tmp_path):
    code, said = finish(supervise("end_like_worker(130)"))
    assert code == 130 and attempts(tmp_path) == 1 and "interrupted" in said


def test_what_an_earlier_job_left_decides_nothing(supervise, tmp_path):
    Roster(tmp_path, 0).write("failed", code=65, reason="long ago")
    assert finish(supervise("end_like_worker(0)", node_rank=1))[0] == 0


def test_the_workers_of_a_killed_launcher_find_their_agent_interrupted(supervise, tmp_path):
    agent = f"""
    sys.path.insert(0, {str(ROOT)!r})
    from megatron_chimed.pipeline.launch.processes import interrupt_with_parent
    interrupt_with_parent()
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


def test_a_launcher_needs_no_torch():
    code = "import sys, tools.launch; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=TIMEOUT_SECONDS)
    assert done.returncode == 0


def test_negative_limits_are_refused():
    with pytest.raises(Exception, match="--stall-seconds is -1: set 0 or more"):
        Limits(stall_seconds=-1)


def test_running_children_are_those_that_have_not_ended():
    with subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE) as made:
        assert made.pid in running_children(os.getpid())
        made.stdin.close()
        # A zombie from now until it is waited for.
        wait_until(lambda: made.pid not in running_children(os.getpid()))
    assert running_children(made.pid) == []
