"""Finds the ends of rows in a stream of bytes: one small state machine per container.

A splitter receives the stream in pieces and returns where rows end in each piece. It holds a few
bytes of state, whatever the size of the rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from megatron_chimed.data.extension import extension

if TYPE_CHECKING:
    from megatron_chimed._data_helpers import CsvRows, JsonRows

DIALOGUE_START = b"id\t"
JSON_CONTAINERS = ("values", "array", "keyed", "members")
DELIMITERS = {"csv": ",", "tsv": "\t"}


class Cut(NamedTuple):
    """The ends of rows within a piece."""

    first: int
    """Bytes of the piece up to the end of the first row that ends in it; 0: no row ends."""

    last: int
    """The same for the last row."""

    start: tuple[int, int] | None = None
    """Byte in the stream and line (from 0) where the first row starts; None: directly after the
    previous row."""

    keys: tuple[bytes, bytes] = (b"", b"")
    """For objects of arrays: the keys, as written, of the arrays of the first and the last row."""


class Problem(NamedTuple):
    """Damage after which no row can be found."""

    reason: str
    """What is wrong."""

    place: tuple[int, int] | None = None
    """Byte in the stream and line (from 0); None: where the last row starts."""


NO_CUT = Cut(0, 0)


class LineSplitter:
    """A row ends after the first byte of a mark: a line end, with what must follow it."""

    def __init__(self, mark: bytes = b"\n") -> None:
        self._mark = mark

    def feed(self, piece: bytes) -> Cut:
        """The ends of rows in the next piece.

        A mark that spans two pieces is not found: the rows around it stay together.
        """
        return Cut(piece.find(self._mark) + 1, piece.rfind(self._mark) + 1)

    def problem(self, is_end: bool) -> Problem | None:
        """Damage found so far, or at the stream's end."""
        return None


class TableSplitter:
    """A row is a record of a table: one line, or several if a quoted field contains line ends."""

    def __init__(self, delimiter: str) -> None:
        self._records: CsvRows = extension().CsvRows(delimiter)
        self._fed = 0

    def feed(self, piece: bytes) -> Cut:
        """The ends of rows in the next piece."""
        before, self._fed = self._fed, self._fed + len(piece)
        ends = self._records.feed(piece)
        if not len(ends):
            return NO_CUT
        return Cut(int(ends[0]) - before, int(ends[-1]) - before)

    def problem(self, is_end: bool) -> Problem | None:
        """Damage found so far, or at the stream's end."""
        if is_end and self._records.is_quoted:
            return Problem(
                "a quote that opens in this row is never closed. A quote within a field must "
                "be doubled, and the field quoted; if quotes are plain characters, convert the "
                "table to JSON lines"
            )
        return None


class JsonSplitter:
    """A row is a value of a JSON stream, of an array, or of an object's arrays."""

    def __init__(self, container: str) -> None:
        self._rows: JsonRows = extension().JsonRows(container)
        self._fed = 0

    def feed(self, piece: bytes) -> Cut:
        """The ends of rows in the next piece."""
        before, self._fed = self._fed, self._fed + len(piece)
        table = self._rows.feed(piece)
        if not len(table):
            return NO_CUT
        begin, first, line, _ = map(int, table[0])
        keys = self._rows.keys
        return Cut(
            first=first - before,
            last=int(table[-1, 1]) - before,
            start=(begin, line),
            keys=(keys[int(table[0, 3])], keys[int(table[-1, 3])]),
        )

    def problem(self, is_end: bool) -> Problem | None:
        """Damage found so far, or at the stream's end."""
        if is_end:
            self._rows.finish()
        if not self._rows.error:
            return None
        return Problem(self._rows.error, (self._rows.error_offset, self._rows.error_line))


Splitter = LineSplitter | TableSplitter | JsonSplitter


def splitter_for(container: str) -> Splitter:
    """The splitter of a container's rows."""
    if container in JSON_CONTAINERS:
        # The object with the members is found as a whole, and taken apart when it is parsed.
        return JsonSplitter("values" if container == "members" else container)
    if container in DELIMITERS:
        return TableSplitter(DELIMITERS[container])
    return LineSplitter(b"\n" + DIALOGUE_START if container == "dialogue" else b"\n")
