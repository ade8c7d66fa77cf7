"""Prompts from files.

Needs no torch, so that a bad row is told before a model is loaded.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from megatron_chimed.data.formats.example import Conversation, Example, Ranking, Text, Turn
from megatron_chimed.data.formats.format import Format, ReadOptions, Row
from megatron_chimed.data.formats.messages import find_list, read_messages
from megatron_chimed.data.formats.prompt import UNANSWERED, split_prompt
from megatron_chimed.data.formats.registry import FORMATS
from megatron_chimed.data.formats.row import (
    RowError,
    conversation_of,
    optional_text,
)
from megatron_chimed.data.reading import BadRow, InputFile, expand_inputs, iter_blocks, rows_of
from megatron_chimed.errors import DataError

ID_KEY, PROMPT_KEY, ANSWER_KEY = "id", "prompt", "completion"

PROMPT_ADVICE = (
    'A prompt is a question under "prompt" (and "history", "system"), messages that end with the '
    "user's question, or a row of conversations or ranked answers as docs/formats.md shows them."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A question with what came before it."""

    id: str
    """Tells it from the other prompts."""

    conversation: Conversation
    """Its last turn's answer is ""."""

    category: str = ""
    """What quotas count, such as a hospital department."""

    reference: str | None = None
    """The file's own answer, the best one where it ranks several."""


class PlacedRow(NamedTuple):
    """A row and where it is."""

    row: Row
    entry: InputFile
    number: int  # in its file, from 1
    line: int
    offset: int

    def error(self, reason: object, advice: str) -> DataError:
        """The error that names this row."""
        bad = BadRow(line=self.line, offset=self.offset, reason=str(reason))
        return bad.error(self.entry.path, advice)

    def __str__(self) -> str:
        return f"{self.entry.path}:{self.line}"


def read_prompts(
    paths: Sequence[str], *, id_key: str = ID_KEY, category_key: str = "category"
) -> list[Prompt]:
    """Reads prompts, in the order of the files and rows.

    A row without an id is named by its file and number. A row that asks several questions gives a
    prompt for each, numbered behind the id; one with several answers to a question keeps the first.

    Args:
        paths: Files, folders and patterns, in any container that docs/formats.md lists.
        id_key: Key of a row's id.
        category_key: Key of a row's category.

    Raises:
        ConfigError: A name stands for no file.
        DataError: A malformed row, an id that occurs twice, or no prompt at all.
    """
    inputs = expand_inputs(paths, text_key=PROMPT_KEY)
    names = _short_names([entry.path for entry in inputs])
    prompts: list[Prompt] = []
    seen: dict[str, PlacedRow] = {}
    for placed in placed_rows(inputs, PROMPT_ADVICE):
        own_name = f"{names[placed.entry.path]}:{placed.number}"
        try:
            found = _prompts_of(placed, own_name, id_key, category_key)
        except RowError as error:
            raise placed.error(error, PROMPT_ADVICE) from None
        for prompt in found:
            if prompt.id in seen:
                raise DataError(
                    f"two prompts have the id {prompt.id!r}: {seen[prompt.id]} and {placed}. "
                    "Answers are kept by the id of their prompt: give each its own, or name "
                    f"another key than {id_key!r}."
                )
            seen[prompt.id] = placed
        prompts += found
    if not prompts:
        raise DataError(f"no prompt in {', '.join(map(str, paths))}: nothing to answer.")
    return prompts


def placed_rows(inputs: Sequence[InputFile], advice: str) -> Iterator[PlacedRow]:
    """All rows of the files.

    Raises:
        DataError: A row cannot be read.
    """
    numbers = [0] * len(inputs)
    for block in iter_blocks(inputs):
        entry = inputs[block.file]
        for bad in block.oversized:
            raise bad.error(entry.path, advice)
        for line, offset, row in rows_of(block, entry):
            numbers[block.file] += 1
            if isinstance(row, RowError):
                raise BadRow(line=line, offset=offset, reason=str(row)).error(entry.path, advice)
            yield PlacedRow(row, entry, numbers[block.file], line, offset)


def _short_names(paths: Sequence[Path]) -> dict[Path, str]:
    """The files' names, with as many folders before all of them as tell them apart.

    Not the whole path: ids must not change where the data are moved.
    """
    different = set(paths)
    depth = 1
    while len({path.parts[-depth:] for path in different}) < len(different):
        depth += 1
    return {path: Path(*path.parts[-depth:]).as_posix() for path in different}


def _prompts_of(placed: PlacedRow, own_name: str, id_key: str, category_key: str) -> list[Prompt]:
    """The prompts of a row.

    Raises:
        RowError: It has none.
    """
    row = placed.row if isinstance(placed.row, dict) else {}
    name = label_of(row, id_key) or own_name
    category = label_of(row, category_key)
    answers: dict[Conversation, str | None] = {}
    for conversation, answer in _questions(placed):
        answers.setdefault(conversation, answer)
    return [
        Prompt(
            id=name if number == 1 else f"{name}#{number}",
            conversation=conversation,
            category=category,
            reference=answer,
        )
        for number, (conversation, answer) in enumerate(answers.items(), start=1)
    ]


def label_of(row: dict[str, Any], key: str) -> str:
    """An id or a category as text, "" if there is none.

    Raises:
        RowError: It is neither a text nor an integer.
    """
    value = row.get(key)
    return str(value) if type(value) is int else optional_text(row, key).strip()


def _questions(placed: PlacedRow) -> list[tuple[Conversation, str | None]]:
    """What a row asks, and how it answers that itself.

    Raises:
        RowError: It asks nothing.
    """
    row, kind = placed.row, _format_of(placed.row)
    if kind is not None:
        examples = kind.examples(row, ReadOptions(folder=placed.entry.path.parent))
        return [_split_answer(example) for example in examples]
    if isinstance(row, str):
        raise RowError("a line of text, which does not say what is asked")
    system, turns, question = split_prompt(row)
    answer = optional_text(row, ANSWER_KEY) or None
    turns = [*turns, Turn(question, answer or UNANSWERED)]
    conversation, _ = _split_answer(conversation_of(row, turns, system))
    return [(conversation, answer)]


def _format_of(row: Row) -> Format | None:
    """The format of a row that answers its question; None where it only asks.

    Raises:
        RowError: Its messages are malformed.
    """
    key = find_list(row) if isinstance(row, dict) else None
    if isinstance(row, dict) and key and not FORMATS["sharegpt_preference"].recognise(row):
        messages = read_messages(row[key])
        return FORMATS["sharegpt"] if messages and messages[-1][0] == "assistant" else None
    formats = (entry for name, entry in FORMATS.items() if name != "text")
    return next((entry for entry in formats if entry.fits(row)), None)


def _split_answer(example: Example) -> tuple[Conversation, str]:
    """The question of an example, and its best answer."""
    assert not isinstance(example, Text), "texts have no format here"
    if isinstance(example, Ranking):
        return example.prompt, example.candidates[example.ranks.index(0)]
    *earlier, last = example.turns
    turns = (*earlier, replace(last, answer=""))
    return replace(example, turns=turns), last.answer
