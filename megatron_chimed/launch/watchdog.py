"""One attempt: an agent and its workers, watched until they end or have to be ended."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_chimed.launch.limits import INTERRUPTED, NOT_MET, RETRY, Limits
from megatron_chimed.launch.processes import kill_descendants, running_children
from megatron_chimed.launch.roster import FOLDER_NAME, Roster


@dataclass(frozen=True, kw_only=True)
class End:
    """How an attempt ended."""

    code: int
    reason: str
    had_workers: bool
    """Whether the nodes met and ranks were started."""
    is_final: bool = False
    """Whether nothing is to be tried again, whatever the code."""


class Watchdog:
    """Tells when an attempt can come to nothing. It is told what happens and when, in seconds.

    Args:
        limits: See there.
        now: When the agent was started.
    """

    def __init__(self, limits: Limits, now: float) -> None:
        self._limits = limits
        self._started = self._last_life = now
        self._last_write = 0.0
        self._leaving_since: float | None = None
        self.had_workers = False

    def complaint(
        self, *, num_workers: int, lost_peer: str | None, written: float, now: float
    ) -> str | None:
        """Why the attempt has to be ended now; None if it may go on.

        Args:
            num_workers: The agent's running children.
            lost_peer: A node that has lost its workers, if one has.
            written: `last_write` of the run's folder; only whether it changes counts.
            now: The time.
        """
        limits = self._limits
        if written != self._last_write or (num_workers and not self.had_workers):
            self._last_write, self._last_life = written, now
        self.had_workers = self.had_workers or num_workers > 0
        if not self.had_workers:
            # torchrun gives up by itself then, unless it hangs in a call to the store.
            if now - self._started > limits.join_seconds + limits.drain_seconds:
                return "the agent neither met the other nodes nor gave up"
            return None
        if num_workers and lost_peer is None:
            if now - self._last_life <= limits.stall_seconds:
                return None
            return f"the workers hang: they have written nothing for {limits.stall_seconds:g} s"
        if self._leaving_since is None:
            self._leaving_since = now
        if now - self._leaving_since <= limits.drain_seconds:
            return None
        if num_workers:
            return f"{lost_peer} lost its workers, and those of this node wait for them"
        return "all workers ended, but the agent hangs"


def last_write(run_folder: Path) -> float:
    """Newest modification time below a run's folder, by its file system's clock; 0.0: nothing.

    What launchers write is left out: they live even if the run does not.
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
    roster: Roster,
    limits: Limits,
    asked_to_stop: Callable[[], str | None],
    environment: Mapping[str, str],
) -> End:
    """Starts the agent and waits for its end, or ends it; afterwards none of its processes is left.

    Args:
        command: The agent.
        run_folder: The run's output folder.
        roster: Of the job's nodes; is told when workers run.
        limits: See there.
        asked_to_stop: What asked this launcher to stop, if something did.
        environment: What its processes find besides this one's.

    Raises:
        ParallelError: A process cannot be killed.
    """
    agent = subprocess.Popen(command, start_new_session=True, env={**os.environ, **environment})
    watchdog, next_look, written = Watchdog(limits, time.monotonic()), 0.0, 0.0
    try:
        for workers in _while_running(agent, limits.poll_seconds):
            now = time.monotonic()
            if by := asked_to_stop():
                return _preempt(agent, workers, limits, by)
            if workers and not watchdog.had_workers:
                roster.remember()
                roster.write("training")
            if now >= next_look:
                next_look = now + limits.look_seconds
                written = last_write(run_folder)
                roster.look()
            if failed := roster.other("failed"):
                reason = f"{failed['node']} stopped the job: {failed['reason']}"
                return End(code=failed["code"], reason=reason, had_workers=True, is_final=True)
            if not watchdog.had_workers and roster.other("done"):
                return End(code=NOT_MET, reason="nobody is left to meet", had_workers=False)
            complaint = watchdog.complaint(
                num_workers=len(workers), lost_peer=roster.lost_peer(), written=written, now=now
            )
            if complaint:
                code = RETRY if watchdog.had_workers else NOT_MET
                return End(code=code, reason=complaint, had_workers=watchdog.had_workers)
        return _end_of(agent.returncode, watchdog.had_workers)
    finally:
        kill_descendants(limits.kill_seconds)


def _while_running(agent: subprocess.Popen, poll_seconds: float) -> Iterator[list[int]]:
    """The agent's running workers, again and again until it ends."""
    while agent.poll() is None:
        yield running_children(agent.pid)
        with contextlib.suppress(subprocess.TimeoutExpired):
            agent.wait(poll_seconds)


def _preempt(agent: subprocess.Popen, workers: Sequence[int], limits: Limits, by: str) -> End:
    """Passes SIGTERM on to the workers and lets them save; what runs after the grace is killed."""
    deadline = time.monotonic() + limits.grace_seconds
    for pid in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    reason = f"preempted by {by}"
    for _ in _while_running(agent, limits.poll_seconds) if workers else ():
        if time.monotonic() > deadline:
            reason += f"; its workers did not end within {limits.grace_seconds:g} s and were killed"
            break
    # An end by the signal itself, before a worker listens for it, is none of these.
    own_error = agent.returncode in range(128) and agent.returncode not in (RETRY, NOT_MET)
    if own_error:  # such as a full disk; or it was done
        return dataclasses.replace(_end_of(agent.returncode, had_workers=True), is_final=True)
    return End(code=RETRY, reason=reason, had_workers=bool(workers), is_final=True)


def _end_of(code: int, had_workers: bool) -> End:
    if code == 0:
        return End(code=0, reason="done", had_workers=True, is_final=True)
    if code == INTERRUPTED:
        return End(code=code, reason="interrupted", had_workers=True, is_final=True)
    if code == NOT_MET:
        reason = "lost the other nodes" if had_workers else "did not meet the other nodes"
        return End(code=code, reason=reason, had_workers=had_workers)
    if code < 0:
        reason = f"the agent was killed by signal {-code}"
        return End(code=RETRY, reason=reason, had_workers=had_workers)
    how = f"by signal {code - 128}" if code > 128 else f"with exit code {code}"
    # Those that fail in their first moment end before the first look at them.
    return End(code=code, reason=f"a rank ended {how}", had_workers=True)
