"""The flags that say how rows are read, the same for every command that reads corpora."""

import argparse

from megatron_chimed.data.formats.columns import ROLES
from megatron_chimed.data.formats.registry import AUTO, FORMATS
from megatron_chimed.data.reading import MAX_ROW_BYTES
from megatron_chimed.data.reading.encodings import COMMON, UTF8


def add_reading_flags(group: argparse._ActionsContainer) -> None:
    """Adds what says how a row becomes examples."""
    group.add_argument(
        "--format",
        default=AUTO,
        metavar="NAME",
        help=f"{', '.join(FORMATS)}, or {AUTO} to detect it in each file (default: {AUTO})",
    )
    group.add_argument(
        "--text-key", default="text", metavar="KEY", help="key of the text in a row (default: text)"
    )
    group.add_argument(
        "--columns",
        nargs="+",
        default=(),
        metavar="ROLE=COLUMN",
        help="what the columns of your own data are, instead of a format: question=Q,answer=A; a "
        f"column within another is OUTER.INNER; roles: {', '.join(ROLES)}",
    )
    group.add_argument(
        "--encoding",
        default=UTF8,
        metavar="NAME",
        help=f"encoding of the files, such as {', '.join(COMMON[1:])}; Parquet has its own "
        f"(default: {UTF8})",
    )
    group.add_argument(
        "--ignore-keys",
        nargs="+",
        default=(),
        metavar="KEY",
        help="keys of rows to read as if they were not there, such as one that makes rows "
        "malformed though it says nothing in your data",
    )
    group.add_argument(
        "--strict-keys",
        action="store_true",
        help="a key that nothing reads makes a row malformed (default: it is listed)",
    )


def add_bad_row_flags(group: argparse._ActionsContainer) -> None:
    """Adds what says which rows are malformed, and how many may be."""
    group.add_argument(
        "--max-bad-rate",
        type=float,
        default=0.0,
        metavar="R",
        help="share of rows that may be malformed, 0 to 1; they are skipped and listed in "
        "OUTPUT.quarantine.jsonl (default: 0)",
    )
    group.add_argument(
        "--max-row-bytes",
        type=int,
        default=MAX_ROW_BYTES,
        metavar="N",
        help=f"largest row in bytes; larger ones are malformed (default: {MAX_ROW_BYTES})",
    )
