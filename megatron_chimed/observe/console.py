"""Consoles and tables that never cut numbers, on terminals of any width and without one.

By default rich assumes 80 columns where it cannot tell the width, and cuts what does not fit.
"""

import sys
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Column, Table
    from rich.text import Text

PLAIN_WIDTH = 200  # columns of piped or redirected output
WORD_WIDTH = 16  # longer words in a text column may be folded


def make_console() -> "Console":
    """A console on stdout; wide and without colours if stdout is not a terminal."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else PLAIN_WIDTH
    return Console(highlight=False, width=width)


def print_table(table: "Table", console: "Console") -> None:
    """Prints a table; if its numbers do not fit side by side, prints one line per cell.

    Args:
        table: Right-justified columns hold numbers, which are never folded; texts may be. Modified.
        console: Where to print.
    """
    cells = [[_as_text(cell, console) for cell in column.cells] for column in table.columns]
    headers = [_as_text(column.header, console) for column in table.columns]
    shown = headers if table.show_header else [None] * len(headers)
    whole = console.measure(table, options=console.options.update(width=1 << 20)).maximum
    widest = [_widest([*texts, *filter(None, [h])]) for h, texts in zip(shown, cells, strict=True)]
    needs = [
        _need(column, header, texts)
        for column, header, texts in zip(table.columns, shown, cells, strict=True)
    ]
    if whole - sum(widest) + sum(needs) > console.width:
        _print_rows(headers, cells, table, console)
        return
    for column, need in zip(table.columns, needs, strict=True):
        column.overflow, column.no_wrap = "fold", False
        if whole > console.width and _is_number(column):
            column.width = need  # or rich would take from it what a text could give
    console.print(table)


def _as_text(cell: "RenderableType", console: "Console") -> "Text":
    return console.render_str(cell) if isinstance(cell, str) else cast("Text", cell)


def _widest(texts: "list[Text]") -> int:
    return max((line.cell_len for text in texts for line in text.split("\n")), default=0)


def _need(column: "Column", header: "Text | None", texts: "list[Text]") -> int:
    """Smallest width at which a column is still legible."""
    words = _longest_word([header] if header else [])
    if _is_number(column):
        return max(_widest(texts), words)
    return max(1, min(WORD_WIDTH, max(words, _longest_word(texts))))


def _longest_word(texts: "list[Text]") -> int:
    from rich.cells import cell_len

    return max((cell_len(word) for text in texts for word in text.plain.split()), default=0)


def _is_number(column: "Column") -> bool:
    return column.justify == "right"


def _print_rows(
    headers: "list[Text]", cells: "list[list[Text]]", table: "Table", console: "Console"
) -> None:
    """Prints `header: cell` for each cell, with blank lines between rows."""
    if table.title:
        console.print(_as_text(table.title, console), soft_wrap=True)
    for row in zip(*cells, strict=True):
        console.print()
        for header, cell in zip(headers, row, strict=True):
            label = f"{header.plain}: " if header.plain else ""
            if cell.plain:
                console.print(label, cell, sep="", markup=False, soft_wrap=True)
    if table.caption:
        console.print(_as_text(table.caption, console), soft_wrap=True)
    console.print()
