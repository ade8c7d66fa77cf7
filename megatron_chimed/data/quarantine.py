"""Malformed rows: an error at the first one, or put aside up to a stated share."""

import json
import os
from pathlib import Path
from types import TracebackType

from megatron_chimed.data.rows import BadRow
from megatron_chimed.errors import DataError
from megatron_chimed.files import publish, remove, temporary_path


class Quarantine:
    """Collects malformed rows in `P.quarantine.jsonl`: file, line, byte offset and reason.

    A context manager: what was not judged is removed.

    Args:
        prefix: Output prefix.
        max_bad_rate: Largest share of rows that may be malformed; 0 raises at the first.
    """

    def __init__(self, prefix: str | os.PathLike, max_bad_rate: float) -> None:
        self.path = Path(f"{prefix}.quarantine.jsonl")
        self.max_bad_rate = max_bad_rate
        self.rows = 0
        self._temporary = temporary_path(self.path)
        self._stream = open(self._temporary, "w", encoding="utf-8")

    def __enter__(self) -> "Quarantine":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stream.close()
        remove(self._temporary)

    def add(self, file: Path, row: BadRow) -> None:
        """Takes a malformed row.

        Raises:
            DataError: None is allowed.
        """
        if self.max_bad_rate == 0.0:
            raise row.error(
                file,
                "Correct the row, or pass --max-bad-rate 0.001 to put up to 0.1 % of rows aside.",
            )
        self.rows += 1
        entry = {"file": str(file), "line": row.line, "byte": row.offset, "reason": row.reason}
        self._stream.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def judge(self, rows: int) -> None:
        """Gives the list its final name if it has any row; an older one is removed if not.

        Args:
            rows: All rows read.

        Raises:
            DataError: Too many are malformed; the list is kept for the user to see.
        """
        self._stream.close()
        if not self.rows:
            remove(self.path)
            return
        publish(self._temporary, self.path)
        if self.rows > self.max_bad_rate * rows:
            raise DataError(
                f"{self.rows} of {rows} rows are malformed, more than --max-bad-rate "
                f"{self.max_bad_rate}. See {self.path}; correct them or raise the rate."
            )
