"""What a format is: how its rows look, and how one becomes examples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_chimed.data.formats.example import Example
from megatron_chimed.data.formats.row import RowError

Row = dict[str, Any] | str
"""An object or table row as a dict; a line of plain text or a group of dialogue lines as a str."""


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """What a format may need besides the row."""

    text_key: str = "text"
    """Key of the text in rows of the format `text`."""

    folder: Path = Path(".")
    """Folder of the input file, for formats whose texts lie in files beside it."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """One format of input rows."""

    name: str
    """What `--format` calls it."""

    recognise: Callable[[Row], bool]
    """Whether a row looks like this format; its keys and their types decide, never a file name."""

    read: Callable[[Row, ReadOptions], Sequence[Example]]
    """The examples of a row, often one. Raises `RowError` where the row does not fit."""

    takes_text: bool = False
    """Whether a line of text, or several, may be a row."""

    sample: Row
    """A row as a file would hold it; docs/formats.md shows it."""

    def examples(self, row: Row, options: ReadOptions) -> Sequence[Example]:
        """The examples of a row of any kind.

        Raises:
            RowError: The row does not fit.
        """
        if isinstance(row, str) and not self.takes_text:
            raise RowError(
                f"a line of text, where the format {self.name} has an object. Is the file JSON?"
            )
        return self.read(row, options)
