"""How far a run is, on disk: what a killed one needs to go on as if it had never stopped.

One small JSON file in the work folder, replaced atomically. The spools are synced before it, so
that whatever it counts is there, power cut or not.
"""

import json
from pathlib import Path
from typing import Any

from megatron_chimed.files import write_text

FORMAT_VERSION = 2  # raise it whenever the same input would give other bytes
NAME = "journal.json"


class Journal:
    """The state of one run.

    Args:
        folder: The work folder.
        fingerprint: Everything that the output depends on, by name; JSON values.

    Attributes:
        state: What was saved last by a run of the same fingerprint; None: none was.
        is_found: Whether the folder holds a run, of whatever fingerprint.
        differences: The names in which a run that was found differs from this one; empty where
            there was none, or where it is the same.
    """

    def __init__(self, folder: Path, fingerprint: dict[str, Any]) -> None:
        self.path = folder / NAME
        # As it will be read back: tuples become lists.
        fingerprint = json.loads(json.dumps({"journal": FORMAT_VERSION, **fingerprint}))
        self._fingerprint = fingerprint
        self.state: dict[str, Any] | None = None
        self.differences: list[str] = []
        found = _read(self.path)
        self.is_found = found is not None
        if found is None:
            return
        theirs = found["fingerprint"]
        names = {**fingerprint, **theirs}
        self.differences = [n for n in names if theirs.get(n) != fingerprint.get(n)]
        if not self.differences:
            self.state = found["state"]

    def save(self, state: dict[str, Any]) -> None:
        """Replaces the state; durable on return. Sync what it counts first."""
        value = {"fingerprint": self._fingerprint, "state": state}
        write_text(self.path, json.dumps(value, allow_nan=False))  # file names may be no UTF-8
        self.state = state


def _read(path: Path) -> dict[str, Any] | None:
    """The journal, or None where there is none that can be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    is_whole = isinstance(value, dict) and {"fingerprint", "state"} <= value.keys()
    return value if is_whole and isinstance(value["fingerprint"], dict) else None
