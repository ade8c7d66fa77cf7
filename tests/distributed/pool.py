"""Gloo worker processes that are reused from one distributed test to the next.

Importing torch and megatron-core costs 6 to 10 seconds per process, a case far less than one: so
`GlooPool` starts a worker when a case first needs it and keeps it. A worker that failed, hung or
died is killed, never reused; its peers in that case go with it, since their state is unknown.

Invariants: rank i of every case is worker i; rendezvous is a file in a fresh folder, never a port;
no worker outlives the process that started it. Workers see no GPU, unless there is one for each
rank: nccl refuses two ranks on one. Functions and results cross the process border by
plain pickle: a function must be at the top level of an importable module, tensors go by value.
"""

import contextlib
import datetime
import faulthandler
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pytest

MAX_WORLD_SIZE = 4
LOG_TAIL_CHARACTERS = 4000
# After the first failure the other ranks get this long to report their own error, which they do as
# soon as gloo sees the closed connection.
GRACE_SECONDS = 5.0


def gpus_for_ranks(*, asked: bool) -> int:
    """How many ranks may have a GPU each: those of this machine if there are several, else 0.

    Args:
        asked: Whether tests may use GPUs at all.
    """
    if not asked:
        return 0
    import torch

    count = torch.cuda.device_count()
    return count if count > 1 else 0


class RankError(Exception):
    """A rank raised, died or did not end in time; the message holds tracebacks and output.

    Attributes:
        errors: rank -> traceback, or what else happened to it.
    """

    def __init__(self, message: str, errors: dict[int, str]) -> None:
        super().__init__(message)
        self.errors = errors


class GlooPool:
    """Runs a function on up to `MAX_WORLD_SIZE` ranks, one process each.

    Args:
        num_gpus: 0: workers see none, and jobs run on gloo. Otherwise rank i of a job has GPU i,
            and jobs of more ranks than GPUs are skipped.
    """

    def __init__(self, num_gpus: int = 0) -> None:
        self._num_gpus = num_gpus
        self._folder = tempfile.TemporaryDirectory(prefix="gloo-pool-")
        self._workers: list[_Worker | None] = [None] * MAX_WORLD_SIZE
        self._num_runs = 0

    def run(
        self,
        function: Callable[..., Any],
        world_size: int,
        *args: Any,
        timeout: float = 120.0,
        init: bool = True,
        **kwargs: Any,
    ) -> list[Any]:
        """Calls `function` once per rank and waits for all of them.

        Args:
            function: With `init`, called as `function(rank, world_size, *args, **kwargs)` inside an
                initialised default process group; without, as
                `function(rank, world_size, store_path, *args, **kwargs)`: it initialises (with
                `file://{store_path}`, a file that does not exist yet) and shuts down by itself.
                Jobs do, so they are what runs on GPUs; a group of the pool is always gloo's.
            world_size: Number of ranks, at most `MAX_WORLD_SIZE`.
            *args: Passed on, the same to each rank.
            timeout: Seconds for the whole case, start of new workers included.
            init: Whether the pool makes and destroys the process group.
            **kwargs: Passed on.

        Returns:
            What each rank returned, in rank order.

        Raises:
            RankError: A rank raised, died or was not done after `timeout` seconds.
        """
        assert 1 <= world_size <= MAX_WORLD_SIZE, f"no {world_size} ranks in a pool of 4"
        if not init and 0 < self._num_gpus < world_size:
            pytest.skip(f"{world_size} ranks need a GPU each, and there are {self._num_gpus}")
        self._num_runs += 1
        store_path = Path(self._folder.name, f"store-{self._num_runs}")
        workers = [self._worker(rank) for rank in range(world_size)]
        try:
            for rank, worker in enumerate(workers):
                case = (function, rank, world_size, str(store_path), init, timeout, args, kwargs)
                worker.send(case)
            return _collect(workers, timeout)
        except BaseException:
            self._kill(world_size)
            raise
        finally:
            store_path.unlink(missing_ok=True)

    def close(self) -> None:
        """Ends all workers and removes their logs."""
        self._kill(MAX_WORLD_SIZE)
        self._folder.cleanup()

    def _worker(self, rank: int) -> "_Worker":
        worker = self._workers[rank]
        if worker is None or not worker.process.is_alive():
            worker = _Worker(
                Path(self._folder.name, f"rank-{rank}.log"), sees_gpus=self._num_gpus > 0
            )
            self._workers[rank] = worker
        return worker

    def _kill(self, world_size: int) -> None:
        for rank, worker in enumerate(self._workers[:world_size]):
            if worker is not None:
                worker.kill()
            self._workers[rank] = None


class _Worker:
    """The parent's side of one process: its pipe and its log."""

    def __init__(self, log: Path, *, sees_gpus: bool) -> None:
        context = multiprocessing.get_context("spawn")  # a forked torch may deadlock in OpenMP
        self.log = log
        log.write_bytes(b"")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(theirs, str(log), sees_gpus), daemon=True
        )
        self.process.start()
        theirs.close()  # the worker's copy is now the only one: its death is our end of file

    def send(self, case: tuple) -> None:
        self.log_start = self.log.stat().st_size
        # A worker that is already dead is reported by `_collect`, with its output.
        with contextlib.suppress(BrokenPipeError):
            self.pipe.send_bytes(pickle.dumps(case))

    def receive(self) -> tuple[bool, Any]:
        """(True, result) or (False, what went wrong)."""
        try:
            return pickle.loads(self.pipe.recv_bytes())
        except (EOFError, ConnectionResetError):
            self.process.join(timeout=10)
            return False, f"the process died with exit code {self.process.exitcode}"

    def stacks(self) -> str:
        """Makes a hung process write its stacks to its log."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGUSR1)
        self.process.join(timeout=0.5)  # the time faulthandler takes to write
        return "not done in time, killed (stacks are in its output)"

    def output(self) -> str:
        """What it printed in this case, the end of it."""
        text = self.log.read_bytes()[self.log_start :].decode("utf-8", errors="replace")
        return text[-LOG_TAIL_CHARACTERS:].strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.process.close()
        self.pipe.close()


def _collect(workers: list[_Worker], timeout: float) -> list[Any]:
    """Waits for each rank's answer; raises `RankError` with those that failed."""
    deadline = time.monotonic() + timeout
    ranks = {worker.pipe: rank for rank, worker in enumerate(workers)}
    results: list[Any] = [None] * len(workers)
    errors: dict[int, str] = {}
    while ranks and (ready := wait(list(ranks), max(0.0, deadline - time.monotonic()))):
        for pipe in ready:
            rank = ranks.pop(pipe)
            ok, answer = workers[rank].receive()
            if ok:
                results[rank] = answer
            else:
                errors[rank] = answer
                deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
    if not errors and not ranks:
        return results
    hung = sorted(ranks.values())
    failure = f"failed on rank {sorted(errors)}" if errors else f"hung for {timeout:g} s on {hung}"
    errors |= {rank: workers[rank].stacks() for rank in hung}
    parts = [f"{failure} of {len(workers)} ranks"]
    for rank, error in errors.items():  # the first to fail comes first: it is the likely cause
        parts.append(f"--- rank {rank}: {error}")
        if output := workers[rank].output():
            parts.append(f"--- rank {rank} printed:\n{output}")
    raise RankError("\n".join(parts), errors)


def _serve(pipe: Connection, log: str, sees_gpus: bool) -> None:
    """A worker's life: answers cases until its parent closes the pipe or dies."""
    if not sees_gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before a case imports torch
    threading.Thread(target=_die_with_parent, daemon=True).start()
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    os.environ["OMP_NUM_THREADS"] = "1"
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # a host's own name may not resolve
    while True:
        try:
            message = pipe.recv_bytes()
        except EOFError:
            return
        try:
            answer = pickle.dumps((True, _run_case(*pickle.loads(message))))
        except BaseException:  # SystemExit too: whatever a test does is the test's result
            answer = pickle.dumps((False, traceback.format_exc()))
        pipe.send_bytes(answer)


def _die_with_parent() -> None:
    """Ends this process when the one that started it is gone, even inside a hung collective."""
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _run_case(
    function: Callable[..., Any],
    rank: int,
    world_size: int,
    store_path: str,
    init: bool,
    timeout: float,
    args: tuple,
    kwargs: dict[str, Any],
) -> Any:
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    if not init:
        result = function(rank, world_size, store_path, *args, **kwargs)
        assert not distributed.is_initialized(), f"{function.__qualname__} left its process group"
        return result
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{store_path}",
        rank=rank,
        world_size=world_size,
        timeout=datetime.timedelta(seconds=timeout),
    )
    try:
        return function(rank, world_size, *args, **kwargs)
    finally:
        distributed.destroy_process_group()
