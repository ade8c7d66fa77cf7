"""Prompt files: JSON lines in, the same lines with their completions out."""

import codecs
import json
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_chimed.data.formats.example import Conversation
from megatron_chimed.data.formats.messages import LIST_KEYS
from megatron_chimed.data.formats.prompt import asked_conversation, split_prompt
from megatron_chimed.data.formats.row import RowError, parse_json, refuse_keys, text_at
from megatron_chimed.errors import DataError
from megatron_chimed.files import atomic_file
from megatron_chimed.generation.requests import Completion

ADDED_KEYS = ("candidate", "completion", "finish_reason", "prompt_cut")
CHAT_ADVICE = (
    'Each line is an object with the question under "prompt" (and "history", "system"), or '
    'messages that end with the question under "conversations".'
)
TEXT_ADVICE = 'Each line is an object with the text under "prompt", for example {"prompt": "..."}.'


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRow:
    """A row of a prompt file."""

    row: dict[str, Any]
    """As parsed from the file."""

    location: str
    """`file:line`, for error messages."""

    asked: Conversation | str
    """A conversation whose last answer is "", or a text to be completed; "" if it is blank."""


def read_rows(path: str | os.PathLike, *, is_chat: bool) -> list[PromptRow]:
    """Reads all rows of a prompt file, skipping blank lines.

    Args:
        path: JSON lines.
        is_chat: Whether rows are conversations; otherwise each is a text.

    Raises:
        DataError: A malformed row, with file and line, or no row at all.
    """
    rows = []
    for line, raw in json_lines(path):
        try:
            row = _parse_row(raw)
            asked = _conversation(row) if is_chat else _text(row)
        except (RowError, ValueError) as error:
            advice = CHAT_ADVICE if is_chat else TEXT_ADVICE
            raise DataError(f"{path}:{line}: {error}. {advice}") from None
        rows.append(PromptRow(row=row, location=f"{path}:{line}", asked=asked))
    if not rows:
        raise DataError(f"{path} holds no rows, so there is nothing to complete.")
    return rows


def json_lines(path: str | os.PathLike) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of each non-blank line, without a byte order mark."""
    with open(path, "rb") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield number, line.removeprefix(codecs.BOM_UTF8)


def write_rows(
    path: str | os.PathLike,
    rows: Sequence[dict[str, Any]],
    completions: Sequence[Completion],
    cut: Collection[int] = (),
) -> None:
    """Writes the completed rows, all or nothing.

    Args:
        path: The file.
        rows: As they were read.
        completions: In output order; `prompt_id` is the index of the row, and `candidate` is
            written if a row has more than one.
        cut: Indices of the rows whose prompts were cut.
    """
    with_candidates = any(completion.candidate for completion in completions)
    with atomic_file(Path(path)) as temporary, open(temporary, "wb") as stream:
        for completion in completions:
            added: dict[str, Any] = {"candidate": completion.candidate} if with_candidates else {}
            added |= {"completion": completion.text, "finish_reason": completion.finish_reason}
            if completion.prompt_id in cut:
                added["prompt_cut"] = True
            stream.write(_encode_row({**rows[completion.prompt_id], **added}))


def _parse_row(line: bytes) -> dict[str, Any]:
    """Parses one row and verifies that it can be written back.

    Raises:
        RowError: It is not an object, or has a key that the output would replace.
        ValueError: It is not UTF-8, or holds a value that JSON cannot represent.
    """
    row = parse_json(line)
    if not isinstance(row, dict):
        raise RowError(f"a {type(row).__name__} instead of a JSON object")
    for key in ADDED_KEYS:
        if key in row:
            raise RowError(f'there is a key "{key}" already, which the output would replace')
    _encode_row(row)
    return row


def _conversation(row: dict[str, Any]) -> Conversation | str:
    """The conversation of a row; "" if its question is blank.

    Raises:
        RowError: It is malformed.
    """
    _, _, question = split_prompt(row)
    return asked_conversation(row) if question.strip() else ""


def _text(row: dict[str, Any]) -> str:
    """The text of a row.

    Raises:
        RowError: There is none, or the row has other keys that need a template.
    """
    needs = "needs a chat template, and text is completed here without one (--template NAME)"
    refuse_keys(row, ("system", "history", *LIST_KEYS), needs)
    return text_at(row, "prompt")


def _encode_row(row: dict[str, Any]) -> bytes:
    """A row as a line of JSON."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n"
