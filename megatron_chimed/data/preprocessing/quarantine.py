"""Malformed rows: counted, listed, and an error if there are more than the user allows."""

import json
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from megatron_chimed.data.preprocessing.journal import Spool
from megatron_chimed.data.preprocessing.writer import QUARANTINE, output_path
from megatron_chimed.data.reading import BadRow
from megatron_chimed.errors import ConfigError, DataError
from megatron_chimed.files import atomic_file

MOSTLY_BAD = 0.5  # share of a file's rows from which on the file as a whole is the problem
# A reason that says what to do itself: it names a flag, or starts a request.
SAYS_HOW = re.compile(r"--[a-z]|[:;,.] (?:use|write|remove|join|rename|pass|Pass|see|fix) ")
SHOWN_REASONS = 3


class FileRows(NamedTuple):
    """The rows of an input file."""

    file: str
    bad: int
    rows: int

    @property
    def is_mostly_bad(self) -> bool:
        """Whether skipping bad rows would leave less than half of the file."""
        return self.rows > 1 and self.bad > MOSTLY_BAD * self.rows


class Quarantine:
    """Collects malformed rows in `P.quarantine.jsonl`: file, line, byte offset and reason.

    Args:
        folder: The work folder, where the list grows; the writer publishes it with its files.
        prefix: Output prefix.
        max_bad_rate: Largest share of rows that may be malformed.
        size: Bytes of an existing list that the journal counts.
    """

    def __init__(
        self, folder: Path, prefix: str | os.PathLike, *, max_bad_rate: float, size: int = 0
    ) -> None:
        self.prefix = prefix
        self.max_bad_rate = max_bad_rate
        self._spool = Spool(folder / QUARANTINE, size)

    def add(self, file: str, row: BadRow) -> None:
        """Records a malformed row."""
        entry = {"file": file, "line": row.line, "byte": row.offset, "reason": row.reason}
        # A file name that is not valid UTF-8 becomes a JSON escape.
        line = json.dumps(entry, ensure_ascii=False) + "\n"
        self._spool.append(line.encode("utf-8", "backslashreplace"))

    def sync(self) -> int:
        """Makes the list so far durable and returns its size in bytes."""
        self._spool.sync()
        return self._spool.size

    def check_rate(self, files: Sequence[FileRows]) -> None:
        """Checks the share of malformed rows against `max_bad_rate`.

        Args:
            files: The rows of each input file.

        Raises:
            DataError: Too many are malformed; unless none is allowed, the list is published.
        """
        self._spool.flush()
        if is_within(files, self.max_bad_rate):
            return
        error = rate_error(files, self.max_bad_rate, self._entries())
        if not self.max_bad_rate:
            raise error
        raise DataError(f"{error} All are listed in {self.publish()}.")

    def publish(self) -> Path:
        """Writes the list beside the output and returns its path."""
        self._spool.flush()
        path = output_path(self.prefix, QUARANTINE)
        with atomic_file(path) as temporary:
            shutil.copyfile(self._spool.path, temporary)
        return path

    def close(self) -> None:
        """Closes the file."""
        self._spool.close()

    def _entries(self) -> Iterator[dict[str, Any]]:
        with open(self._spool.path, encoding="utf-8") as stream:
            yield from map(json.loads, stream)


def check_bad_rate(rate: float) -> None:
    """Checks the user's `--max-bad-rate`.

    Raises:
        ConfigError: It is no share below 1.
    """
    if not 0.0 <= rate < 1.0:
        raise ConfigError(
            f"--max-bad-rate is {rate}; give a share of rows from 0 (none) to below 1, such as "
            "0.001."
        )


def is_within(files: Sequence[FileRows], max_bad_rate: float) -> bool:
    """Whether no more rows than allowed are malformed."""
    return sum(f.bad for f in files) <= max_bad_rate * sum(f.rows for f in files)


def rate_error(
    files: Sequence[FileRows], max_bad_rate: float, entries: Iterator[dict[str, Any]]
) -> DataError:
    """The error of too many malformed rows, with advice that can help.

    A rate is advised only where it would help: not for a file that is not what the command takes it
    for.

    Args:
        files: The rows of each input file.
        max_bad_rate: The share of rows that may be malformed.
        entries: The malformed rows as `Quarantine` lists them.
    """
    first = next(entries)
    reasons = Counter(entry["reason"] for entry in (first, *entries))
    place = f"{first['file']}:{first['line']}:{first['byte']} (line:byte): {first['reason']}."
    listed = ""
    if len(reasons) > 1:
        shown = [f"{count:,} x {reason}" for reason, count in reasons.most_common(SHOWN_REASONS)]
        listed = f" ({'; '.join(shown)}{'; ...' * (len(reasons) > SHOWN_REASONS)})"
    bad, rows = sum(f.bad for f in files), sum(f.rows for f in files)
    mostly_bad = [f for f in files if f.is_mostly_bad] if max_bad_rate < MOSTLY_BAD else []
    if mostly_bad or bad == rows:
        worst = mostly_bad[0] if mostly_bad else next(f for f in files if f.bad)
        more = f" (and of {len(mostly_bad) - 1} more files)" if len(mostly_bad) > 1 else ""
        what = f"{worst.bad:,} of the {worst.rows:,} rows of {worst.file}{more} cannot be used"
        check = " Check --stage, --format, --columns and --encoding, or leave the file out."
        says_how = any(map(SAYS_HOW.search, reasons))
        return DataError(f"{place} {what}{listed}.{'' if says_how else check}")
    return DataError(
        f"{place} {bad} of {rows} rows are malformed, more than --max-bad-rate {max_bad_rate}"
        f"{listed}. Fix them, or pass --max-bad-rate {needed_rate(bad, rows)} to skip and list "
        "them."
    )


def needed_rate(bad: int, rows: int) -> str:
    """The smallest rate of few digits that lets so many rows be malformed, below 1."""
    digits = max(1, 1 - math.floor(math.log10(bad / rows)))
    while math.ceil(bad / rows * 10**digits) / 10**digits >= 1.0:
        digits += 1
    return f"{math.ceil(bad / rows * 10**digits) / 10**digits:.{digits}f}".rstrip("0")
