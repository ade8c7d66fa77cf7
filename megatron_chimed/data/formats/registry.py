"""The list of formats, and which one a file has."""

from collections.abc import Callable
from pathlib import Path

from megatron_chimed.data.formats.jsonl import parse_jsonl
from megatron_chimed.data.formats.text import parse_text
from megatron_chimed.errors import ConfigError, DataError

AUTO = "auto"
PROBE_BYTES = 1 << 16
BOM = b"\xef\xbb\xbf"

FORMATS: dict[str, Callable[[str, str], str]] = {"jsonl": parse_jsonl, "text": parse_text}
"""Name to a function of (line, text key) that returns the text or raises `RowError`."""


def detect_format(path: Path, name: str = AUTO) -> str:
    """The format of a file: `name` itself unless it is `auto`.

    A `.jsonl` file is JSON lines; any other is, if its first line with content opens an object.

    Raises:
        ConfigError: No such format.
        DataError: The file is one JSON array, which cannot be read line by line.
    """
    if name != AUTO:
        if name not in FORMATS:
            raise ConfigError(f"--format {name!r} is none of {AUTO}, {', '.join(FORMATS)}.")
        return name
    with open(path, "rb") as stream:
        head = stream.read(PROBE_BYTES).removeprefix(BOM).lstrip()
    if path.suffix == ".json" and head.startswith(b"["):
        raise DataError(f"{path} is one JSON array. Write one object per line and name it .jsonl.")
    return "jsonl" if path.suffix == ".jsonl" or head.startswith(b"{") else "text"
