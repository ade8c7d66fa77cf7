"""Malformed rows: an error at the first one, or listed up to a given share of all rows."""

import json
import os
import shutil
from pathlib import Path

from megatron_chimed.data.preprocessing.journal import Spool
from megatron_chimed.data.preprocessing.writer import QUARANTINE, output_path
from megatron_chimed.data.reading import BadRow
from megatron_chimed.errors import DataError
from megatron_chimed.files import atomic_file


class Quarantine:
    """Collects malformed rows in `P.quarantine.jsonl`: file, line, byte offset and reason.

    Args:
        folder: The work folder, where the list grows; the writer publishes it with its files.
        prefix: Output prefix.
        max_bad_rate: Largest share of rows that may be malformed; 0 raises at the first one.
        size: Bytes of an existing list that the journal counts.
    """

    def __init__(
        self, folder: Path, prefix: str | os.PathLike, *, max_bad_rate: float, size: int = 0
    ) -> None:
        self.prefix = prefix
        self.max_bad_rate = max_bad_rate
        self._spool = Spool(folder / QUARANTINE, size)

    def add(self, file: str, row: BadRow) -> None:
        """Records a malformed row.

        Raises:
            DataError: `max_bad_rate` is 0.
        """
        if self.max_bad_rate == 0.0:
            raise row.error(
                file, "Fix the row, or pass --max-bad-rate 0.001 to skip up to 0.1 % of rows."
            )
        entry = {"file": file, "line": row.line, "byte": row.offset, "reason": row.reason}
        # A file name that is not valid UTF-8 becomes a JSON escape.
        line = json.dumps(entry, ensure_ascii=False) + "\n"
        self._spool.append(line.encode("utf-8", "backslashreplace"))

    def sync(self) -> int:
        """Makes the list so far durable and returns its size in bytes."""
        self._spool.sync()
        return self._spool.size

    def check_rate(self, *, bad: int, rows: int) -> None:
        """Checks the share of malformed rows against `max_bad_rate`.

        Args:
            bad: Malformed rows.
            rows: All rows.

        Raises:
            DataError: Too many are malformed; the list is published for the user to read.
        """
        self._spool.flush()
        if bad <= self.max_bad_rate * rows:
            return
        path = output_path(self.prefix, QUARANTINE)
        with atomic_file(path) as temporary:
            shutil.copyfile(self._spool.path, temporary)
        raise DataError(
            f"{bad} of {rows} rows are malformed, more than --max-bad-rate {self.max_bad_rate}. "
            f"See {path}; fix them or raise the rate."
        )

    def close(self) -> None:
        """Closes the file."""
        self._spool.close()
