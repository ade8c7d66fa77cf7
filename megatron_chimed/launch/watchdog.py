"""One attempt: an agent and its workers, watched until they end or have to be killed."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_chimed.launch.limits import INTERRUPTED, NO_RENDEZVOUS, RETRY, Limits
from megatron_chimed.launch.node_states import FOLDER_NAME, NodeStates
from megatron_chimed.launch.process_tree import kill_descendants, running_children


@dataclass(frozen=True, kw_only=True)
class AttemptResult:
    """How an attempt ended."""

    code: int
    reason: str
    had_workers: bool
    """Whether the nodes met and ranks were started."""
    is_final: bool = False
    """Whether there is no further attempt, whatever the code."""


class Watchdog:
    """Decides when an attempt is stuck, from the facts and times (in seconds) that it is given.

    Args:
        limits: How long what may take.
        now: When the agent was started.
    """

    def __init__(self, limits: Limits, now: float) -> None:
        self._limits = limits
        self._started = self._last_activity = now
        self._last_write = 0.0
        self._ending_since: float | None = None
        self.had_workers = False

    def failure(
        self, *, num_workers: int, lost_peer: str | None, written: float, now: float
    ) -> str | None:
        """Why the attempt has to be ended now; None if it may go on.

        Args:
            num_workers: The agent's running children.
            lost_peer: A node that has lost its workers, if any.
            written: `last_write` of the run's folder; only whether it changes matters.
            now: The time.
        """
        limits = self._limits
        if written != self._last_write or (num_workers and not self.had_workers):
            self._last_write, self._last_activity = written, now
        self.had_workers = self.had_workers or num_workers > 0
        if not self.had_workers:
            # torchrun gives up by itself, unless it hangs in a call to the store.
            if now - self._started > limits.join_seconds + limits.drain_seconds:
                return "torchrun hangs in the rendezvous with the other nodes"
            return None
        if num_workers and lost_peer is None:
            if now - self._last_activity <= limits.stall_seconds:
                return None
            return f"the workers hang: they have written nothing for {limits.stall_seconds:g} s"
        if self._ending_since is None:
            self._ending_since = now
        if now - self._ending_since <= limits.drain_seconds:
            return None
        if num_workers:
            return f"{lost_peer} lost its workers, and this node's workers hang waiting for them"
        return "all workers ended, but torchrun hangs"


def last_write(run_folder: Path) -> float:
    """Newest modification time below a run's folder, by its file system's clock; 0.0: no file.

    Files of launchers are left out: they are written even while the run hangs.
    """
    newest = 0.0
    for folder, names, file_names in os.walk(run_folder):
        if Path(folder) == run_folder and FOLDER_NAME in names:
            names.remove(FOLDER_NAME)
        for name in file_names:
            with contextlib.suppress(FileNotFoundError):  # renamed or removed since it was listed
                newest = max(newest, os.stat(os.path.join(folder, name)).st_mtime)
    return newest


def run_attempt(
    command: Sequence[str],
    *,
    run_folder: Path,
    nodes: NodeStates,
    limits: Limits,
    stop_signal: Callable[[], str | None],
    environment: Mapping[str, str],
) -> AttemptResult:
    """Starts the agent and waits until it ends, or kills it; none of its processes remains.

    Args:
        command: The agent.
        run_folder: The run's output folder.
        nodes: States of the job's nodes; this node's becomes `training` once workers run.
        limits: How long what may take.
        stop_signal: Name of the signal that asked this launcher to stop, if any.
        environment: Variables added to this process's environment.

    Raises:
        ParallelError: A process cannot be killed.
    """
    agent = subprocess.Popen(command, start_new_session=True, env={**os.environ, **environment})
    watchdog, next_refresh, written = Watchdog(limits, time.monotonic()), 0.0, 0.0
    try:
        for workers in _while_running(agent, limits.poll_seconds):
            now = time.monotonic()
            if name := stop_signal():
                return _preempt(agent, workers, limits, name)
            if workers and not watchdog.had_workers:
                nodes.mark_failures_seen()
                nodes.write("training")
            if now >= next_refresh:
                next_refresh = now + limits.refresh_seconds
                written = last_write(run_folder)
                nodes.refresh()
            if failed := nodes.find_other("failed"):
                reason = f"{failed['node']} stopped the job: {failed['reason']}"
                return AttemptResult(
                    code=failed["code"], reason=reason, had_workers=True, is_final=True
                )
            if not watchdog.had_workers and nodes.find_other("done"):
                reason = "the other nodes are done"
                return AttemptResult(code=NO_RENDEZVOUS, reason=reason, had_workers=False)
            failure = watchdog.failure(
                num_workers=len(workers), lost_peer=nodes.lost_peer(), written=written, now=now
            )
            if failure:
                code = RETRY if watchdog.had_workers else NO_RENDEZVOUS
                return AttemptResult(code=code, reason=failure, had_workers=watchdog.had_workers)
        return _result_of(agent.wait(), watchdog.had_workers)
    finally:
        kill_descendants(limits.kill_seconds)


def _while_running(agent: subprocess.Popen, poll_seconds: float) -> Iterator[list[int]]:
    """The agent's running workers, polled until the agent ends."""
    while agent.poll() is None:
        yield running_children(agent.pid)
        with contextlib.suppress(subprocess.TimeoutExpired):
            agent.wait(poll_seconds)


def _preempt(
    agent: subprocess.Popen, workers: Sequence[int], limits: Limits, signal_name: str
) -> AttemptResult:
    """Forwards SIGTERM to the workers so that they save; what runs after the grace is killed."""
    deadline = time.monotonic() + limits.grace_seconds
    for pid in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    reason = f"preempted by {signal_name}"
    for _ in _while_running(agent, limits.poll_seconds) if workers else ():
        if time.monotonic() > deadline:
            reason += f"; its workers did not end within {limits.grace_seconds:g} s and were killed"
            break
    # A worker that SIGTERM killed before it installed a handler has no error of its own.
    own_error = agent.returncode in range(128) and agent.returncode not in (RETRY, NO_RENDEZVOUS)
    if own_error:  # such as a full disk; or it was done
        return dataclasses.replace(_result_of(agent.returncode, had_workers=True), is_final=True)
    return AttemptResult(code=RETRY, reason=reason, had_workers=bool(workers), is_final=True)


def _result_of(code: int, had_workers: bool) -> AttemptResult:
    if code == 0:
        return AttemptResult(code=0, reason="done", had_workers=True, is_final=True)
    if code == INTERRUPTED:
        return AttemptResult(code=code, reason="interrupted", had_workers=True, is_final=True)
    if code == NO_RENDEZVOUS:
        reason = "lost the other nodes" if had_workers else "the other nodes did not join"
        return AttemptResult(code=code, reason=reason, had_workers=had_workers)
    if code < 0:
        reason = f"the agent was killed by signal {-code}"
        return AttemptResult(code=RETRY, reason=reason, had_workers=had_workers)
    how = f"by signal {code - 128}" if code > 128 else f"with exit code {code}"
    # Workers that fail at once end before they are first polled.
    return AttemptResult(code=code, reason=f"a rank ended {how}", had_workers=True)
