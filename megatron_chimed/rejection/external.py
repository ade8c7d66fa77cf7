"""Answers to prompts that others than the policy wrote, from files."""

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_chimed.data.formats.row import RowError, optional_text, text_at
from megatron_chimed.data.reading import expand_inputs
from megatron_chimed.data.reading.input_stream import COMPRESSION_SUFFIXES
from megatron_chimed.errors import DataError
from megatron_chimed.generation.prompts import (
    ANSWER_KEY,
    ID_KEY,
    PlacedRow,
    Prompt,
    label_of,
    placed_rows,
)
from megatron_chimed.rejection.candidate import POLICY, REFERENCE

NAMED_ROWS = 5

EXTERNAL_ADVICE = (
    'An answer by others is an object with the prompt\'s id under "id", the answer under '
    '"completion" and, optionally, who wrote it under "source".'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class External:
    """An answer by somebody else than the policy."""

    prompt: int
    """Place of the prompt in the list of prompts."""

    source: str
    """Who wrote it."""

    text: str
    """The answer."""


def read_external(paths: Sequence[str], prompts: Sequence[Prompt]) -> list[External]:
    """Reads answers of others, in the order of the files and rows.

    Args:
        paths: As of `read_prompts`; rows of `id`, `completion` and, optionally, `source`, which is
            otherwise the file's name without its endings.
        prompts: What they answer.

    Raises:
        ConfigError: A name stands for no file.
        DataError: A malformed row, a file without rows, ids that no prompt has.
    """
    places = {prompt.id: place for place, prompt in enumerate(prompts)}
    answers: list[External] = []
    unknown: list[str] = []
    inputs = expand_inputs(paths, text_key=ANSWER_KEY)
    empty = {entry.path for entry in inputs}
    for placed in placed_rows(inputs, EXTERNAL_ADVICE):
        empty.discard(placed.entry.path)
        try:
            prompt_id, source, text = _answer_of(placed)
        except RowError as error:
            raise placed.error(error, EXTERNAL_ADVICE) from None
        if prompt_id in places:
            answers.append(External(prompt=places[prompt_id], source=source, text=text))
        else:
            unknown.append(f"{prompt_id!r} ({placed})")
    if empty:
        raise DataError(f"no answers in {', '.join(map(str, sorted(empty)))}. Leave it out.")
    if unknown:
        raise DataError(
            f"{len(unknown)} of {len(unknown) + len(answers)} answers by others are to prompts "
            f"that are not there: {_first(unknown)}. The prompts' ids are "
            f"{_first([repr(prompt.id) for prompt in prompts])}. Take those rows out, or correct "
            "their ids."
        )
    return answers


def _answer_of(placed: PlacedRow) -> tuple[str, str, str]:
    """The id of a prompt, who answers it, and the answer.

    Raises:
        RowError: One of them is missing.
    """
    row, path = placed.row, placed.entry.path
    if isinstance(row, str):
        raise RowError("a line of text, which does not say what it answers")
    prompt_id, text = label_of(row, ID_KEY), text_at(row, ANSWER_KEY)
    if not prompt_id:
        raise RowError(f"no {ID_KEY!r}, so nothing says what is answered")
    if not text.strip():
        raise RowError(f"{ANSWER_KEY!r} is empty")
    bare = path.with_suffix("") if path.suffix in COMPRESSION_SUFFIXES else path
    source = optional_text(row, "source").strip() or bare.stem
    if source in (POLICY, REFERENCE):
        raise RowError(
            f"the source {source!r} stands for the policy's own draws or the prompts' own answers; "
            "give another one"
        )
    return prompt_id, source, text


def _first(items: Sequence[str]) -> str:
    return ", ".join(items[:NAMED_ROWS]) + (", ..." if len(items) > NAMED_ROWS else "")
