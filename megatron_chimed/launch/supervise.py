"""One node's part of a job, kept going: start torchrun, watch it, end it wholly, start it again.

torchrun alone does not survive a network that parts its nodes: an agent that waits for an answer of
the lost store hangs for ever, and restarted workers find the addresses of dead predecessors. So an
attempt is thrown away whole, agent and workers, and the next one begins with a new store; what is
kept is the checkpoint. A run shows that it lives by writing into its folder (metrics at each logged
step, checkpoints), and that it gets on by committing a checkpoint newer than any before.
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

from megatron_chimed.launch.attempt import End, run_attempt
from megatron_chimed.launch.limits import INTERRUPTED, NOT_MET, NOT_RETRIED, RETRY, Limits
from megatron_chimed.launch.processes import adopt_orphans, running_children
from megatron_chimed.launch.roster import Roster


class Budget:
    """How much patience is left: restarts that bring nothing, and time without the other nodes.

    Args:
        limits: See there.
        now: The time in seconds.
        checkpoint: Step of the run's newest checkpoint.
    """

    def __init__(self, limits: Limits, *, now: float, checkpoint: int) -> None:
        self._limits = limits
        self._best = checkpoint
        self._waits_since = now
        self.restarts = 0

    def refusal(self, end: End, *, now: float, checkpoint: int) -> str | None:
        """Counts an attempt; why there shall be no other, or None if there shall."""
        limits = self._limits
        if end.code in NOT_RETRIED:
            return "a restart would not mend it"
        if checkpoint > self._best:
            self._best, self.restarts = checkpoint, 0
        if end.had_workers:
            self._waits_since = now
        elif end.code == NOT_MET:
            # Nodes that do not meet yet cost time, not restarts: a network may be down for long.
            if now - self._waits_since <= limits.wait_seconds:
                return None
            return (
                f"the nodes have not met for {limits.wait_seconds:g} s. Check that each node's "
                "launcher runs and reaches the endpoint"
            )
        if not limits.max_restarts:
            return "nothing is tried again"
        self.restarts += 1
        if self.restarts <= limits.max_restarts:
            return None
        return f"{limits.max_restarts} restarts in a row brought no checkpoint newer than " + (
            f"that of step {self._best}" if self._best >= 0 else "the start"
        )


class Supervisor:
    """Runs one node's agent until the run is done or cannot be.

    Args:
        command: The agent with its arguments; its children are the workers.
        run_folder: The run's output folder, which all nodes share.
        node_rank: This node's number in the job.
        limits: See there.
        environment: What the agent and its workers find besides this process's.

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
        self._roster = Roster(run_folder, node_rank)
        self._signal: signal.Signals | None = None

    def run(self) -> int:
        """Starts attempts until one ends for good.

        Returns:
            0 when the run is complete; 130 after ^C; 75 after SIGTERM, or when an attempt hung or
            the other nodes did not come, and patience is over; else the exit code of the worker
            that failed.

        Raises:
            ParallelError: A process of this node cannot be killed.
        """
        adopt_orphans()
        checkpoint = newest_checkpoint(self._folder)
        budget = Budget(self._limits, now=time.monotonic(), checkpoint=checkpoint)
        try:
            with self._signals_noted():
                return self._run(budget)
        except KeyboardInterrupt:
            checkpoint = newest_checkpoint(self._folder)
            kept = f"checkpoint of step {checkpoint}" if checkpoint >= 0 else "no checkpoint"
            self._roster.write("preempted", code=INTERRUPTED, reason="killed by a second ^C")
            self._say(f"killed by a second ^C; {self._folder} holds {kept}")
            return INTERRUPTED

    def _run(self, budget: Budget) -> int:
        while True:
            end = self._attempt()
            if end.is_final:
                return self._finish(end)
            checkpoint = newest_checkpoint(self._folder)
            refusal = budget.refusal(end, now=time.monotonic(), checkpoint=checkpoint)
            if refusal:
                code = RETRY if end.code == NOT_MET else end.code
                return self._fail(code, f"{end.reason}; {refusal}")
            self._pause(end, budget.restarts)

    def _attempt(self) -> End:
        end = run_attempt(
            self._command,
            run_folder=self._folder,
            roster=self._roster,
            limits=self._limits,
            asked_to_stop=lambda: self._signal and self._signal.name,
            environment=self._environment,
        )
        if end.had_workers and end.code:
            self._roster.count_failure()
        self._roster.look()
        # The others' last steps included every rank of this node, so the run is complete even if
        # something was lost here after them; an error of its own stays one.
        lost = end.code in (RETRY, NOT_MET) or end.code > 128
        if lost and not end.is_final and (done := self._roster.other("done")):
            reason = f"done, says {done['node']} ({end.reason} here)"
            return End(code=0, reason=reason, had_workers=True, is_final=True)
        return end

    def _finish(self, end: End) -> int:
        state = "failed" if end.code else "done"
        self._roster.write("preempted" if self._signal and end.code else state, **_shown(end))
        self._say(end.reason)
        is_interrupted = self._signal is signal.SIGINT and end.code == RETRY
        return INTERRUPTED if is_interrupted else end.code

    def _fail(self, code: int, reason: str) -> int:
        self._roster.write("failed", code=code, reason=reason)
        self._say(f"stopped: {reason}. The first error above says why")
        return code

    def _pause(self, end: End, restarts: int) -> None:
        limits = self._limits
        delay = limits.first_delay_seconds * 2 ** max(restarts - 1, 0)
        delay = min(delay, limits.max_delay_seconds)
        self._roster.write("restarting", **_shown(end))
        self._say(
            f"{end.reason}; trying again in {delay:g} s ({restarts} of {limits.max_restarts} "
            "restarts without a newer checkpoint)"
        )
        deadline = time.monotonic() + delay
        while not self._signal and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, limits.poll_seconds))

    @contextlib.contextmanager
    def _signals_noted(self) -> Iterator[None]:
        """While entered, SIGTERM and a first ^C are noted; a second ^C is KeyboardInterrupt."""

        def note(number: int, frame: FrameType | None) -> None:
            if number == signal.SIGINT and not self._limits.is_watched and _interrupt_workers():
                return
            if number == signal.SIGINT and self._signal:
                signal.signal(number, signal.SIG_IGN)  # the killing is not interrupted
                raise KeyboardInterrupt
            if number == signal.SIGINT:
                self._say("^C: waiting for the workers to save and end; ^C again kills them")
            self._signal = self._signal or signal.Signals(number)

        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _say(self, text: str) -> None:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        print(f"[{stamp} launcher of {self._name}] {text}", file=sys.stderr, flush=True)


def _interrupt_workers() -> bool:
    """Passes ^C on, for commands that have their own answer to it, such as a talk.

    Returns:
        Whether there was a worker; before there is one, ^C is the launcher's.
    """
    workers = [
        worker for agent in running_children(os.getpid()) for worker in running_children(agent)
    ]
    for worker in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGINT)
    return bool(workers)


def _shown(end: End) -> dict[str, Any]:
    return {"code": end.code, "reason": end.reason}


def newest_checkpoint(run_folder: Path) -> int:
    """Step of the newest committed checkpoint, by the names of their folders; -1: none."""
    steps = [path.name.removeprefix("iter_") for path in run_folder.glob("checkpoints/iter_*")]
    return max((int(step) for step in steps if step.isdigit()), default=-1)
