"""An append-only JSON lines file that survives a kill; its first line identifies the job."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_chimed.engine.agreement import json_bytes
from megatron_chimed.errors import OutputError


class JsonlJournal:
    """Appends lines to a new or existing file; a partial last line left by a kill is removed.

    Args:
        path: The file; its folder is created.
        first: The first line of a new file; JSON.
    """

    def __init__(self, path: Path, first: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = open(path, "ab")  # noqa: SIM115  (stays open as long as the job)
        os.truncate(path, sum(map(len, _whole_lines(path))))
        if not path.stat().st_size:
            self.write(first)

    def write(self, value: Any) -> None:
        """Appends a line; a kill of this process does not lose it."""
        self._stream.write(json_bytes(value) + b"\n")
        self._stream.flush()

    def close(self) -> None:
        """Closes the file, which stays on disk."""
        self._stream.close()


def read_journal(path: Path) -> Iterator[Any]:
    """The values of all whole lines, one in memory at a time.

    Raises:
        OutputError: A line is not JSON.
    """
    for number, line in enumerate(_whole_lines(path), start=1):
        try:
            yield json.loads(line)
        except ValueError as error:
            raise OutputError(
                f"{path}:{number} is damaged ({error}), so the unfinished job cannot resume from "
                "it. Remove the file: its contents are computed again."
            ) from None


def _whole_lines(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as stream:
        yield from (line for line in stream if line.endswith(b"\n"))
