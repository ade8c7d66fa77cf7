"""Supervises one node's part of a job: start torchrun, watch it, kill it entirely, restart it.

torchrun alone does not survive a network partition: an agent that waits for the lost store hangs
forever, and restarted workers find the addresses of dead predecessors. So a failed attempt is
discarded as a whole, agent and workers, and the next one starts with a new store; only checkpoints
are kept. A run shows that it is alive by writing into its folder (metrics at each logged step,
checkpoints), and that it makes progress by committing a checkpoint newer than any before.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from megatron_chimed.launch.limits import INTERRUPTED, NO_RENDEZVOUS, NOT_RETRIED, RETRY, Limits
from megatron_chimed.launch.node_states import NodeStates
from megatron_chimed.launch.process_tree import adopt_orphans, running_children
from megatron_chimed.launch.watchdog import AttemptResult, run_attempt


class RestartBudget:
    """What is left of the allowed restarts without progress and of the wait for other nodes.

    Args:
        limits: How many, and how long.
        now: The time in seconds.
        checkpoint: Step of the run's newest checkpoint.
    """

    def __init__(self, limits: Limits, *, now: float, checkpoint: int) -> None:
        self._limits = limits
        self._best = checkpoint
        self._waits_since = now
        self.restarts = 0

    def refusal(self, end: AttemptResult, *, now: float, checkpoint: int) -> str | None:
        """Counts an attempt; returns why there is no further one, or None if there is."""
        limits = self._limits
        if end.code in NOT_RETRIED:
            return "a restart would not fix it"
        if checkpoint > self._best:
            self._best, self.restarts = checkpoint, 0
        if end.had_workers:
            self._waits_since = now
        elif end.code == NO_RENDEZVOUS:
            # Waiting for other nodes costs time, not restarts: a network may be down for long.
            if now - self._waits_since <= limits.wait_seconds:
                return None
            return (
                f"no rendezvous for {limits.wait_seconds:g} s. Check that each node's launcher "
                "runs and reaches the endpoint"
            )
        if not limits.max_restarts:
            return "no restarts are allowed"
        self.restarts += 1
        if self.restarts <= limits.max_restarts:
            return None
        since = f"than that of step {self._best}" if self._best >= 0 else "than the start"
        return f"{limits.max_restarts} consecutive restarts produced no checkpoint newer {since}"


class Supervisor:
    """Runs one node's agent until the run is done or has failed for good.

    Args:
        command: The agent with its arguments; its children are the workers.
        run_folder: The run's output folder, which all nodes share.
        node_rank: This node's rank in the job.
        limits: Allowed restarts and times.
        environment: Variables that agent and workers get besides this process's environment.

    Raises:
        OSError: The folder cannot be written.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        run_folder: Path,
        node_rank: int,
        limits: Limits,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._command = list(command)
        self._environment = environment or {}
        self._folder = run_folder
        self._name = f"node {node_rank}"
        self._limits = limits
        self._nodes = NodeStates(run_folder, node_rank)
        self._signal: signal.Signals | None = None

    def run(self) -> int:
        """Starts attempts until the last one.

        Returns:
            0 when the run is complete; 130 after ^C; 75 after SIGTERM, or when the last allowed
            attempt hung or the other nodes did not join; else the exit code of the failed worker.

        Raises:
            ParallelError: A process of this node cannot be killed.
        """
        adopt_orphans()
        checkpoint = newest_checkpoint(self._folder)
        budget = RestartBudget(self._limits, now=time.monotonic(), checkpoint=checkpoint)
        try:
            with self._signals_recorded():
                return self._run(budget)
        except KeyboardInterrupt:
            checkpoint = newest_checkpoint(self._folder)
            kept = f"the checkpoint of step {checkpoint}" if checkpoint >= 0 else "no checkpoint"
            self._nodes.write("preempted", code=INTERRUPTED, reason="killed by a second ^C")
            self._say(f"killed by a second ^C; {self._folder} holds {kept}")
            return INTERRUPTED

    def _run(self, budget: RestartBudget) -> int:
        while True:
            end = self._attempt()
            if end.is_final:
                return self._finish(end)
            checkpoint = newest_checkpoint(self._folder)
            refusal = budget.refusal(end, now=time.monotonic(), checkpoint=checkpoint)
            if refusal:
                code = RETRY if end.code == NO_RENDEZVOUS else end.code
                return self._fail(code, f"{end.reason}; {refusal}")
            self._pause(end, budget.restarts)

    def _attempt(self) -> AttemptResult:
        end = run_attempt(
            self._command,
            run_folder=self._folder,
            nodes=self._nodes,
            limits=self._limits,
            stop_signal=lambda: self._signal.name if self._signal else None,
            environment=self._environment,
        )
        if end.had_workers and end.code:
            self._nodes.count_failure()
        self._nodes.refresh()
        # The other nodes' last step included every rank of this node, so the run is complete even
        # if something was lost here afterwards; an error of this node's own remains an error.
        lost = end.code in (RETRY, NO_RENDEZVOUS) or end.code > 128
        if lost and not end.is_final and (done := self._nodes.find_other("done")):
            reason = f"{done['node']} reports that the run is done (here: {end.reason})"
            return AttemptResult(code=0, reason=reason, had_workers=True, is_final=True)
        return end

    def _finish(self, end: AttemptResult) -> int:
        state = "failed" if end.code else "done"
        self._nodes.write("preempted" if self._signal and end.code else state, **_as_details(end))
        self._say(end.reason)
        is_interrupted = self._signal is signal.SIGINT and end.code == RETRY
        return INTERRUPTED if is_interrupted else end.code

    def _fail(self, code: int, reason: str) -> int:
        self._nodes.write("failed", code=code, reason=reason)
        self._say(f"stopped: {reason}. See the first error above")
        return code

    def _pause(self, end: AttemptResult, restarts: int) -> None:
        limits = self._limits
        delay = limits.first_delay_seconds * 2 ** max(restarts - 1, 0)
        delay = min(delay, limits.max_delay_seconds)
        self._nodes.write("restarting", **_as_details(end))
        self._say(
            f"{end.reason}; restarting in {delay:g} s ({restarts} of {limits.max_restarts} "
            "restarts without a newer checkpoint)"
        )
        deadline = time.monotonic() + delay
        while not self._signal and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, limits.poll_seconds))

    @contextlib.contextmanager
    def _signals_recorded(self) -> Iterator[None]:
        """Records SIGTERM and a first ^C; a second ^C raises KeyboardInterrupt."""

        def record(number: int, frame: FrameType | None) -> None:
            if number == signal.SIGINT and not self._limits.is_watched and _interrupt_workers():
                return
            if number == signal.SIGINT and self._signal:
                signal.signal(number, signal.SIG_IGN)  # nothing interrupts the killing
                raise KeyboardInterrupt
            self._signal = self._signal or signal.Signals(number)
            # Last: a second ^C may come while this is printed.
            if number == signal.SIGINT:
                self._say("^C: waiting for the workers to save and end; ^C again kills them")

        watched = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, record) for number in watched}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _say(self, text: str) -> None:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        print(f"[{stamp} launcher of {self._name}] {text}", file=sys.stderr, flush=True)


def _interrupt_workers() -> bool:
    """Forwards ^C to commands that handle it themselves, such as an interactive chat.

    Returns:
        Whether there was a worker; before there is one, the launcher handles ^C.
    """
    workers = [
        worker for agent in running_children(os.getpid()) for worker in running_children(agent)
    ]
    for worker in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGINT)
    return bool(workers)


def _as_details(end: AttemptResult) -> dict[str, Any]:
    return {"code": end.code, "reason": end.reason}


def newest_checkpoint(run_folder: Path) -> int:
    """Step of the newest committed checkpoint, by the names of folders; -1 without one."""
    steps = [path.name.removeprefix("iter_") for path in run_folder.glob("checkpoints/iter_*")]
    return max((int(step) for step in steps if step.isdigit()), default=-1)
