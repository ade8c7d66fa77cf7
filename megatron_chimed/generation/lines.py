"""A file of JSON lines that outlives a kill: the first says what the others belong to."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_chimed.engine.agreement import json_bytes
from megatron_chimed.errors import OutputError


class LineFile:
    """Adds lines; those that are there stay, but for half a one that a kill left.

    Args:
        path: The file; its folder is made.
        first: What the first line of a new file is to say; JSON.
    """

    def __init__(self, path: Path, first: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = open(path, "ab")  # noqa: SIM115  (lives as long as the job)
        os.truncate(path, sum(map(len, _whole_lines(path))))
        if not path.stat().st_size:
            self.write(first)

    def write(self, value: Any) -> None:
        """Adds a line; a kill of this process does not lose it."""
        self._stream.write(json_bytes(value) + b"\n")
        self._stream.flush()

    def close(self) -> None:
        """Closes the file, which stays."""
        self._stream.close()


def read_lines(path: Path) -> Iterator[Any]:
    """The values of all whole lines, one in memory at a time.

    Raises:
        OutputError: A line is no JSON.
    """
    for number, line in enumerate(_whole_lines(path), start=1):
        try:
            yield json.loads(line)
        except ValueError as error:
            raise OutputError(
                f"{path}:{number} is damaged ({error}): what an unfinished job kept cannot be "
                "taken over. Remove the file; what it held is made again."
            ) from None


def _whole_lines(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as stream:
        yield from (line for line in stream if line.endswith(b"\n"))
