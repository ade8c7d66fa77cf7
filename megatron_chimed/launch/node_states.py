"""What the launchers of a job tell each other: one small file per node in the run's folder.

The folder is on a file system that all nodes share, as checkpoints need one. That makes it a second
way between nodes, which stands when the network between them, or the node that hosts torchrun's
store, is lost. Clocks of nodes are never compared: files are older or newer than one another by the
file system's clock, and failures are counted.
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


class Roster:
    """This node's file, and the others'.

    Args:
        run_folder: The run's output folder; made if it is missing.
        node_rank: This node's number in the job.
    """

    def __init__(self, run_folder: Path, node_rank: int) -> None:
        self._folder = run_folder / FOLDER_NAME
        self._own = self._folder / f"node_{node_rank}.json"
        self._failures = 0
        self._others: dict[str, dict[str, Any]] = {}
        self._known: dict[str, int] = {}
        self.write("starting")
        self._since = self._own.stat().st_mtime_ns

    def write(self, state: State, **details: Any) -> None:
        """Replaces this node's file.

        Args:
            state: `failed` stops every node of the job, `done` says that the run is complete.
            details: `code` and `reason` of a failure, as JSON values; for people, too.
        """
        record = {"state": state, "host": socket.gethostname(), "failures": self._failures}
        files.write_json(self._own, record | details)

    def count_failure(self) -> None:
        """Lets the others know, by the next `write`, that this node's workers have ended."""
        self._failures += 1

    def remember(self) -> None:
        """Takes the others' failures up to now as known; to be called when workers start."""
        self.look()
        self._known = {name: record["failures"] for name, record in self._others.items()}

    def lost_peer(self) -> str | None:
        """A node whose workers have ended since `remember`, as last seen; None: there is none."""
        for name, record in self._others.items():
            if record["failures"] != self._known.get(name, 0):
                return name
        return None

    def other(self, state: State) -> dict[str, Any] | None:
        """A node last seen in this state: its record, with its name under `node`; None: none is."""
        for name, record in self._others.items():
            if record["state"] == state:
                return record | {"node": name}
        return None

    def look(self) -> None:
        """Reads the other nodes' files, but not those that an earlier job left in the folder.

        A record that is older than this node's first is of no interest: before this node joined, no
        worker ran, so nothing was lost or decided.
        """
        for path in self._folder.glob("node_*.json"):
            try:
                if path != self._own and path.stat().st_mtime_ns > self._since:
                    self._others[path.stem] = json.loads(path.read_text(encoding="utf-8"))
            except OSError as error:
                # Its writer has just replaced it: it is read the next time.
                if error.errno not in (errno.ENOENT, errno.ESTALE):
                    raise


def shared_job_id(run_folder: Path, node_rank: int, *, patience: float) -> str:
    """The random name of a run's job, the same on all nodes and at every start.

    Node 0 makes it up, once; the others wait for its file.

    Args:
        run_folder: The run's output folder, which all nodes share.
        node_rank: This node's number.
        patience: Seconds to wait for node 0.

    Raises:
        ParallelError: Node 0 has not written it in time.
    """
    path = run_folder / FOLDER_NAME / JOB_NAME
    if node_rank == 0 and not path.exists():
        files.write_json(path, {"job_id": uuid.uuid4().hex})
    deadline = time.monotonic() + patience
    while not path.exists():
        if time.monotonic() > deadline:
            raise ParallelError(
                f"{path}, which node 0's launcher writes, has not appeared in {patience:g} s. "
                "Check that node 0's launcher runs, and that the run's folder is on a file system "
                "that all nodes share."
            )
        time.sleep(1.0)
    return json.loads(path.read_text(encoding="utf-8"))["job_id"]
