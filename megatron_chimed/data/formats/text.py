"""One document per line of plain text."""

from megatron_chimed.data.formats.row import check_text


def parse_text(line: str, text_key: str) -> str:
    """The line itself; `text_key` has no meaning here.

    Raises:
        RowError: The line holds a NUL.
    """
    return check_text(line)
