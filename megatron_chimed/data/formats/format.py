"""What a format is: how its rows look, and how a row becomes examples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_chimed.data.formats.example import Example
from megatron_chimed.data.formats.row import RowError

JsonRow = dict[str, Any]
"""A JSON object, or a row of a table by column."""

Row = JsonRow | str
"""What readers yield: an object, or a text (a line, or a group of dialogue lines)."""


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """What a format may need in addition to the row."""

    text_key: str = "text"
    """Key of the text in rows of the format `text`."""

    folder: Path = Path(".")
    """Folder of the input file, for formats whose texts are in files beside it."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """One format of input rows."""

    name: str
    """Its name for `--format`."""

    recognise: Callable[[JsonRow], bool]
    """Whether an object looks like this format; keys and types decide, never a file name."""

    read: Callable[[JsonRow, ReadOptions], Sequence[Example]]
    """The examples of an object, often one. Raises `RowError` if the row does not fit."""

    recognise_text: Callable[[str], bool] | None = None
    """As `recognise`, for a text; None: the format has no texts."""

    read_text: Callable[[str], Sequence[Example]] | None = None
    """As `read`, for a text; None: the format has no texts."""

    sample: Row
    """A row as a file would hold it; docs/formats.md shows it."""

    def fits(self, row: Row) -> bool:
        """Whether a row looks like this format."""
        if isinstance(row, str):
            return self.recognise_text is not None and self.recognise_text(row)
        return self.recognise(row)

    def examples(self, row: Row, options: ReadOptions) -> Sequence[Example]:
        """The examples of a row.

        Raises:
            RowError: The row does not fit.
        """
        if not isinstance(row, str):
            return self.read(row, options)
        if self.read_text is None:
            raise RowError(
                f"a line of text, but rows of the format {self.name} are objects. Is the file JSON?"
            )
        return self.read_text(row)
