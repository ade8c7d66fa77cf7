"""Files of prompts: JSON lines in, the same lines with their completions out."""

import codecs
import json
import os
from collections.abc import Sequence
from typing import Any

from megatron_chimed.data.formats.row import RowError, parse_json
from megatron_chimed.errors import DataError
from megatron_chimed.files import atomic_file
from megatron_chimed.generation.requests import Completion

ADDED_KEYS = ("candidate", "completion", "finish_reason")


def read_rows(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Reads all rows of a prompt file; blank lines are none.

    Raises:
        DataError: A malformed row, with file and line, or no row at all.
    """
    rows = []
    with open(path, "rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                rows.append(_parse_row(line))
            except (RowError, ValueError) as error:
                raise DataError(
                    f"{path}:{number}: {error}. Each line is an object with the text under "
                    '"prompt", for example {"prompt": "..."}.'
                ) from None
    if not rows:
        raise DataError(f"{path} holds no rows, so there is nothing to complete.")
    return rows


def write_rows(
    path: str | os.PathLike, rows: Sequence[dict[str, Any]], completions: Sequence[Completion]
) -> None:
    """Writes the completed rows, all or nothing.

    Args:
        path: The file.
        rows: As `read_rows` gave them.
        completions: In the order in which they are to be written; `prompt_id` is the row's place,
            and `candidate` is written where there is more than one for a row.
    """
    with_candidates = any(completion.candidate for completion in completions)
    with atomic_file(path) as temporary, open(temporary, "wb") as stream:
        for completion in completions:
            number = {"candidate": completion.candidate} if with_candidates else {}
            added = {"completion": completion.text, "finish_reason": completion.finish_reason}
            stream.write(_encode_row({**rows[completion.prompt_id], **number, **added}))


def _parse_row(line: bytes) -> dict[str, Any]:
    """One row, proven to be one that can be written back.

    Raises:
        RowError: It is no object with a text under `prompt`, or has a key that would be replaced.
        ValueError: It is no UTF-8, or holds what JSON has no form for.
    """
    row = parse_json(line.removeprefix(codecs.BOM_UTF8))
    if not isinstance(row, dict):
        raise RowError(f"a {type(row).__name__} instead of a JSON object")
    if not isinstance(row.get("prompt"), str):
        kind = type(row["prompt"]).__name__ if "prompt" in row else "no"
        raise RowError(f'{kind} "prompt" where a text is needed')
    for key in ADDED_KEYS:
        if key in row:
            raise RowError(f'there is a key "{key}" already, which the output would replace')
    _encode_row(row)
    return row


def _encode_row(row: dict[str, Any]) -> bytes:
    """A row as a line of JSON."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n"
