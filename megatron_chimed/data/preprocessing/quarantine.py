"""Malformed rows: an error at the first one, or put aside up to a stated share."""

import json
import os
import shutil
from pathlib import Path
from typing import Protocol

from megatron_chimed.data.preprocessing.spool import Spool
from megatron_chimed.data.preprocessing.writer import QUARANTINE, output_path
from megatron_chimed.errors import DataError
from megatron_chimed.files import atomic_file


class BadRow(Protocol):
    """A malformed row and where it lies."""

    line: int
    offset: int
    reason: str


class Quarantine:
    """Collects malformed rows in `P.quarantine.jsonl`: file, line, byte offset and reason.

    Args:
        folder: The work folder, where the list grows; the writer publishes it with its files.
        prefix: Output prefix.
        max_bad_rate: Largest share of rows that may be malformed; 0 raises at the first.
        size: Bytes of the list that a killed run left and that count.
    """

    def __init__(
        self, folder: Path, prefix: str | os.PathLike, *, max_bad_rate: float, size: int = 0
    ) -> None:
        self.prefix = prefix
        self.max_bad_rate = max_bad_rate
        self._spool = Spool(folder / QUARANTINE, size)

    def add(self, file: str, row: BadRow) -> None:
        """Takes a malformed row.

        Raises:
            DataError: None is allowed.
        """
        if self.max_bad_rate == 0.0:
            raise DataError(
                f"{file}:{row.line}:{row.offset} (line:byte): {row.reason}. Correct the row, or "
                "pass --max-bad-rate 0.001 to put up to 0.1 % of rows aside."
            )
        entry = {"file": file, "line": row.line, "byte": row.offset, "reason": row.reason}
        # A file name that is no UTF-8 becomes a JSON escape.
        line = json.dumps(entry, ensure_ascii=False) + "\n"
        self._spool.append(line.encode("utf-8", "backslashreplace"))

    def sync(self) -> int:
        """Makes the list so far durable; returns its bytes."""
        self._spool.sync()
        return self._spool.size

    def judge(self, *, bad: int, rows: int) -> None:
        """Decides whether so many rows may be malformed.

        Args:
            bad: Malformed rows.
            rows: All rows.

        Raises:
            DataError: Too many; the list gets its final name for the user to see.
        """
        self._spool.flush()
        if bad <= self.max_bad_rate * rows:
            return
        path = output_path(self.prefix, QUARANTINE)
        with atomic_file(path) as temporary:
            shutil.copyfile(self._spool.path, temporary)
        raise DataError(
            f"{bad} of {rows} rows are malformed, more than --max-bad-rate {self.max_bad_rate}. "
            f"See {path}; correct them or raise the rate."
        )

    def close(self) -> None:
        """Ends the writing."""
        self._spool.close()
