"""The state of each node of a job: one small file per node in the run's folder.

The folder is on a file system that all nodes share, since checkpoints need one. That makes it a
second channel between launchers, which still works when the network between the nodes, or the node
that hosts torchrun's store, is lost. Clocks of different nodes are never compared: the age of files
is taken from the file system's clock, and failures are counted.
"""

import errno
import json
import socket
import time
import uuid
from pathlib import Path
from typing import Any, Literal

from megatron_chimed import files
from megatron_chimed.errors import ParallelError

FOLDER_NAME = "launch"
JOB_NAME = "job.json"
State = Literal["starting", "training", "restarting", "preempted", "done", "failed"]


class NodeStates:
    """This node's state file, and the last known states of the other nodes.

    Args:
        run_folder: The run's output folder; created if missing.
        node_rank: This node's rank in the job.
    """

    def __init__(self, run_folder: Path, node_rank: int) -> None:
        self._folder = run_folder / FOLDER_NAME
        self._own = self._folder / f"node_{node_rank}.json"
        self._failures = 0
        self._others: dict[str, dict[str, Any]] = {}
        self._seen_failures: dict[str, int] = {}
        self.write("starting")
        self._since = self._own.stat().st_mtime_ns

    def write(self, state: State, **details: Any) -> None:
        """Replaces this node's file.

        Args:
            state: `failed` stops every node of the job, `done` marks the run as complete.
            details: `code` and `reason` of a failure, as JSON values.
        """
        record = {"state": state, "host": socket.gethostname(), "failures": self._failures}
        files.write_json(self._own, record | details)

    def count_failure(self) -> None:
        """Counts a loss of this node's workers; the next `write` publishes it."""
        self._failures += 1

    def mark_failures_seen(self) -> None:
        """Ignores the other nodes' failures so far; to be called when workers start."""
        self.refresh()
        self._seen_failures = {name: record["failures"] for name, record in self._others.items()}

    def lost_peer(self) -> str | None:
        """A node that lost its workers after `mark_failures_seen`, as of `refresh`; or None."""
        for name, record in self._others.items():
            if record["failures"] != self._seen_failures.get(name, 0):
                return name
        return None

    def find_other(self, state: State) -> dict[str, Any] | None:
        """The record of another node in this state, its name under `node`; None: no node is."""
        for name, record in self._others.items():
            if record["state"] == state:
                return record | {"node": name}
        return None

    def refresh(self) -> None:
        """Reads the other nodes' files, except those that an earlier job left in the folder.

        Files older than this node's first one do not matter: before this node joined, no worker
        ran, so nothing was lost or decided.
        """
        for path in self._folder.glob("node_*.json"):
            try:
                if path != self._own and path.stat().st_mtime_ns > self._since:
                    self._others[path.stem] = json.loads(path.read_text(encoding="utf-8"))
            except OSError as error:
                # Its writer has just replaced it: the next refresh reads it.
                if error.errno not in (errno.ENOENT, errno.ESTALE):
                    raise


def shared_job_id(run_folder: Path, node_rank: int, *, patience: float) -> str:
    """The random id of a run's job, the same on all nodes and at every start.

    Node 0 draws it once; the others wait for its file.

    Args:
        run_folder: The run's output folder, which all nodes share.
        node_rank: This node's rank.
        patience: Seconds to wait for node 0.

    Raises:
        ParallelError: Node 0 has not written the file in time.
    """
    path = run_folder / FOLDER_NAME / JOB_NAME
    if node_rank == 0 and not path.exists():
        files.write_json(path, {"job_id": uuid.uuid4().hex})
    deadline = time.monotonic() + patience
    while not path.exists():
        if time.monotonic() > deadline:
            raise ParallelError(
                f"{path}, which node 0's launcher writes, has not appeared within {patience:g} s. "
                "Check that node 0's launcher runs, and that the run's folder is on a file system "
                "that all nodes share."
            )
        time.sleep(1.0)
    return json.loads(path.read_text(encoding="utf-8"))["job_id"]
