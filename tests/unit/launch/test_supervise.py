"""The launcher with agents of a few lines: what each does, and how the launcher reacts."""

import json
import os
import signal
import subprocess
import sys

import pytest

from megatron_chimed.launch.limits import NOT_RETRIED, Limits
from megatron_chimed.launch.process_tree import running_children
from megatron_chimed.launch.watchdog import Watchdog, last_write
from tests.unit.launch.agents import (
    HANGING_WORKER,
    ROOT,
    TIMEOUT_SECONDS,
    attempts,
    finish,
    is_gone,
    wait_until,
)

pytestmark = pytest.mark.timing


def test_a_finished_run_ends_with_0(supervise, tmp_path):
    code, said = finish(supervise("end_like_worker(0)"))
    assert code == 0 and attempts(tmp_path) == 1 and "done" in said
    assert json.loads((tmp_path / "launch/node_0.json").read_text())["state"] == "done"


def test_codes_that_are_not_retried():
    assert sorted(NOT_RETRIED) == [17, 65, 70, 71, 77, 78]


@pytest.mark.parametrize("code", [17, 71, 78])
def test_what_a_restart_cannot_fix_is_not_retried(supervise, tmp_path, code):
    ended, said = finish(supervise(f"end_like_worker({code})"))
    assert ended == code and attempts(tmp_path) == 1
    assert f"a rank ended with exit code {code}; a restart would not fix it" in said
    record = json.loads((tmp_path / "launch/node_0.json").read_text())
    assert (record["state"], record["code"]) == ("failed", code)


@pytest.mark.parametrize("code", [1, 75, 128 + signal.SIGSEGV])
def test_without_a_newer_checkpoint_restarts_are_counted(supervise, tmp_path, code):
    ended, said = finish(supervise(f"end_like_worker({code})", max_restarts=2))
    assert ended == code and attempts(tmp_path) == 3
    assert "2 consecutive restarts produced no checkpoint newer than the start" in said
    how = "by signal 11" if code > 128 else f"with exit code {code}"
    assert f"a rank ended {how}; restarting in" in said


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
    if attempt > 1:
        end_like_worker(0)
    {HANGING_WORKER}
    os.kill(os.getpid(), signal.SIGKILL)
    """
    code, said = finish(supervise(agent))
    assert code == 0 and "the agent was killed by signal 9" in said
    assert is_gone(tmp_path, 1)


def test_hanging_workers_are_killed_and_started_again(supervise, tmp_path):
    agent = f"""
    if attempt > 1:
        end_like_worker(0)
    {HANGING_WORKER}.wait()
    """
    code, said = finish(supervise(agent, stall_seconds=0.6, max_restarts=99))
    assert code == 0 and is_gone(tmp_path, 1)
    assert "the workers hang: they have written nothing for 0.6 s" in said


def test_workers_hang_once_they_have_written_nothing_for_the_limit():
    watchdog = Watchdog(Limits(stall_seconds=10), now=0.0)

    def failure(now, written):
        return watchdog.failure(num_workers=2, lost_peer=None, written=written, now=now)

    assert failure(now=600, written=1.0) is None  # the first look at the workers
    assert [failure(now=600 + 9 * n, written=1.0 + n) for n in range(1, 9)] == [None] * 8
    assert failure(now=682, written=9.0) is None
    assert "have written nothing for 10 s" in failure(now=683, written=9.0)


def test_writes_of_the_run_count_and_those_of_launchers_do_not(tmp_path):
    for name in ("launch/node_0.json", "logs/metrics.jsonl"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    os.utime(tmp_path / "launch/node_0.json", (2e9, 2e9))
    os.utime(tmp_path / "logs/metrics.jsonl", (1e9, 1e9))
    assert last_write(tmp_path) == 1e9
    assert last_write(tmp_path / "missing") == 0.0


def test_an_agent_that_hangs_after_its_workers_is_killed(supervise, tmp_path):
    agent = """
    if attempt > 1:
        end_like_worker(0)
    made = worker("input()")
    while "training" not in own.read_text():
        time.sleep(0.005)
    made.stdin.close()
    time.sleep(99)
    """
    code, said = finish(supervise(agent, drain_seconds=0.3, max_restarts=99))
    assert code == 0 and "all workers ended, but torchrun hangs" in said


def test_a_wait_for_the_other_nodes_costs_time_and_no_restarts(supervise, tmp_path):
    agent = "sys.exit(69) if attempt < 6 else end_like_worker(0)"
    code, said = finish(supervise(agent, max_restarts=1))
    assert code == 0 and attempts(tmp_path) == 6
    assert "the other nodes did not join; restarting in" in said


def test_nodes_that_never_meet_are_given_up(supervise):
    code, said = finish(supervise("sys.exit(69)", wait_seconds=0.3))
    assert code == 75 and "no rendezvous for 0.3 s" in said


def test_an_agent_that_hangs_in_the_rendezvous_is_killed(supervise):
    code, said = finish(
        supervise("time.sleep(99)", join_seconds=0, drain_seconds=0, wait_seconds=0)
    )
    assert code == 75 and "torchrun hangs in the rendezvous with the other nodes" in said


def test_an_agent_that_cannot_start_is_no_wait(supervise, tmp_path):
    code, said = finish(supervise("sys.exit(1)", max_restarts=1))
    assert code == 1 and attempts(tmp_path) == 2


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
