"""What every format shares: a bad row with its reason, and strict JSON."""

import json
from typing import Any

from megatron_chimed.errors import DataError


class RowError(DataError):
    """One row of an input file is malformed; the reader adds file, line and byte."""


def parse_json(line: str) -> Any:
    """A JSON value, without what Python's parser lets through.

    Raises:
        RowError: Malformed, a repeated key, NaN or infinity, or nested too deeply to parse.
    """
    try:
        return json.loads(line, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except RecursionError:
        raise RowError("JSON nested too deeply") from None
    except ValueError as error:
        raise RowError(f"malformed JSON: {error}") from None


def check_text(text: str) -> str:
    """Returns a document's text.

    Raises:
        RowError: It holds a NUL or a lone surrogate, which no tokenizer round-trips.
    """
    if "\x00" in text:
        raise RowError("NUL character in the text")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowError(f"lone surrogate U+{ord(text[error.start]):04X} in the text") from None
    return text


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise RowError(f"key {repeated!r} occurs twice in one object")
    return value


def _refuse_constant(name: str) -> Any:
    raise RowError(f"{name} is no JSON number")
