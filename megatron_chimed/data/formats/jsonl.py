"""One JSON object per line, the document's text under one key: `{"text": "..."}`."""

from megatron_chimed.data.formats.row import RowError, check_text, parse_json


def parse_jsonl(line: str, text_key: str) -> str:
    """The text under `text_key`.

    Raises:
        RowError: The line is no JSON object with a text under that key.
    """
    row = parse_json(line)
    if not isinstance(row, dict):
        raise RowError(f"the row is of type {type(row).__name__}, not an object")
    if text_key not in row:
        keys = ", ".join(map(repr, list(row)[:8])) or "none"
        raise RowError(f"no key {text_key!r} (keys: {keys}); name the right one with --text-key")
    text = row[text_key]
    if not isinstance(text, str):
        raise RowError(f"{text_key!r} is of type {type(text).__name__}, not a text")
    return check_text(text)
