"""`ledger.json` of a workflow's folder: what each step read, when it ran, and what it wrote.

One record per step, written before the step starts and after it ends, each time the whole file by
rename. A record without outputs is a step that was started and has not finished.
"""

import dataclasses
import datetime
import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import megatron_chimed
from megatron_chimed import files
from megatron_chimed.errors import DataError
from megatron_chimed.workflow.artifacts import Hashes

FORMAT_VERSION = 1
LEDGER_NAME = "ledger.json"
GIT_SECONDS = 30


@dataclass(kw_only=True)
class Attempt:
    """One start of a step."""

    started: str
    """ISO 8601, UTC."""
    code_version: Mapping[str, Any]
    """Result of `code_version`."""
    ended: str | None = None
    """None: it is running, or was killed together with the workflow."""
    exit_code: int | None = None


@dataclass(kw_only=True)
class Record:
    """The ledger's entry for one step."""

    kind: str
    command: list[str]
    config: dict[str, Any]
    """Options or resolved configuration."""
    result_config: dict[str, Any]
    """The part of `config` that is compared, flat, without paths (compared by content)."""
    seeds: dict[str, Any]
    inputs: list[dict[str, Any]]
    """`key`, `path` and `hashes` of each input."""
    output: str
    """Path of the output."""
    output_hashes: Hashes | None = None
    """None: not finished."""
    attempts: list[Attempt] = field(default_factory=list)
    again: str | None = None
    """The flag that allowed a stale step to run again; None: none did."""
    is_forced: bool = False
    """Whether it has to run again even if it is not stale."""


class Ledger:
    """The records of all steps.

    Raises:
        DataError: The file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LEDGER_NAME
        self.records: dict[str, Record] = {}
        self.replaced: list[dict[str, Any]] = []
        """Earlier records of steps that ran again: `step`, `record`, and `moved_to`, where their
        output is now."""
        if self.path.exists():
            self._read()

    def save(self, pipeline: Path) -> None:
        """Writes the file."""
        records = {name: dataclasses.asdict(record) for name, record in self.records.items()}
        content = {"format_version": FORMAT_VERSION, "pipeline": str(pipeline), "steps": records}
        files.write_json(self.path, content | {"replaced": self.replaced})

    def replace(self, name: str, moved_to: str | None) -> None:
        """Moves a step's record to `replaced`."""
        record = dataclasses.asdict(self.records.pop(name))
        self.replaced.append({"step": name, "moved_to": moved_to, "record": record})

    def _read(self) -> None:
        advice = "Restore it, or start over in another folder."
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            version = content["format_version"]
            if version != FORMAT_VERSION:
                raise DataError(
                    f"{self.path}: format_version is {version!r}, this program reads "
                    f"{FORMAT_VERSION}. {advice}"
                )
            for name, record in content["steps"].items():
                attempts = [Attempt(**attempt) for attempt in record.pop("attempts")]
                self.records[name] = Record(**record, attempts=attempts)
            self.replaced = content["replaced"]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"{self.path} is damaged: {error}. {advice}") from None


def now() -> str:
    """The current time, ISO 8601, UTC."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def code_version() -> dict[str, Any]:
    """`version` of the package, git `commit` of its source, and whether it is `modified`.

    The commit is None if the package was installed without its repository, or without git.
    """
    root = Path(megatron_chimed.__file__).resolve().parent.parent
    # Not the commit of some repository that contains an installed package.
    commit = _git(root, "rev-parse", "HEAD") if (root / ".git").exists() else None
    status = _git(root, "status", "--porcelain", "--untracked-files=no") if commit else None
    modified = bool(status) if commit else None
    return {"version": megatron_chimed.__version__, "commit": commit, "modified": modified}


def _git(root: Path, *words: str) -> str | None:
    command = ["git", "--no-optional-locks", "-C", str(root), *words]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=GIT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
