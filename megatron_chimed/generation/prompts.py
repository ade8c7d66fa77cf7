"""Prompts from files.

Imports no torch, so that a bad row is reported before a model is loaded.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from megatron_chimed.data.formats.example import (
    Conversation,
    Example,
    Ranking,
    Text,
    Turn,
    UnpairedAnswer,
    has_tools,
)
from megatron_chimed.data.formats.format import Format, ReadOptions, Row
from megatron_chimed.data.formats.messages import find_list, read_messages
from megatron_chimed.data.formats.prompt import NO_TOOLS, UNANSWERED, split_prompt
from megatron_chimed.data.formats.registry import FORMATS
from megatron_chimed.data.formats.row import (
    RowError,
    conversation_of,
    optional_text,
    refuse_keys,
)
from megatron_chimed.data.reading import BadRow, InputFile, expand_inputs, iter_blocks, rows_of
from megatron_chimed.errors import DataError

PAIR_KEYS = ("rejected", "rejected_response", "rejected_messages", "kto_tag")
ID_KEY, PROMPT_KEY, ANSWER_KEY = "id", "prompt", "completion"

PROMPT_ADVICE = (
    'A prompt is a question under "prompt" (and "history", "system"), messages that end with the '
    "user's question, or a row of conversations or ranked answers as docs/formats.md shows them."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A question with the conversation before it."""

    id: str
    """Unique among the prompts of a job."""

    conversation: Conversation
    """The answer of its last turn is ""."""

    category: str = ""
    """For quotas, such as a hospital department."""

    reference: str | None = None
    """The answer in the file, the best one if it ranks several."""


class PlacedRow(NamedTuple):
    """A row and its location."""

    row: Row
    entry: InputFile
    number: int  # in its file, from 1
    line: int
    offset: int

    def error(self, reason: object, advice: str) -> DataError:
        """An error that names this row."""
        bad = BadRow(line=self.line, offset=self.offset, reason=str(reason))
        return bad.error(self.entry.path, advice)

    def __str__(self) -> str:
        return f"{self.entry.path}:{self.line}"


def read_prompts(
    paths: Sequence[str], *, id_key: str = ID_KEY, category_key: str = "category"
) -> list[Prompt]:
    """Reads prompts, in the order of the files and rows.

    A row without an id is named by its file and row number. A row with several questions gives one
    prompt each, numbered after the id; of several answers to a question the first is kept.

    Args:
        paths: Files, folders and patterns, in any container that docs/formats.md lists.
        id_key: Key of a row's id.
        category_key: Key of a row's category.

    Raises:
        ConfigError: A path matches no file.
        DataError: A malformed row, a duplicate id, or no prompt at all.
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
                    "Answers are stored by prompt id: make the ids unique, or set another "
                    f"key than {id_key!r}."
                )
            seen[prompt.id] = placed
        prompts += found
    if not prompts:
        raise DataError(f"no prompt in {', '.join(map(str, paths))}: there is nothing to answer.")
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
    """File names with as many parent folders as make them unique.

    Not the whole path: ids must not change when the data are moved.
    """
    different = set(paths)
    depth = 1
    while len({path.parts[-depth:] for path in different}) < len(different):
        depth += 1
    return {path: Path(*path.parts[-depth:]).as_posix() for path in different}


def _prompts_of(placed: PlacedRow, own_name: str, id_key: str, category_key: str) -> list[Prompt]:
    """The prompts of a row.

    Raises:
        RowError: It has no question.
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
        RowError: The value is neither a string nor an integer.
    """
    value = row.get(key)
    return str(value) if type(value) is int else optional_text(row, key).strip()


def _questions(placed: PlacedRow) -> list[tuple[Conversation, str | None]]:
    """The questions of a row, each with the row's own answer, if any.

    Raises:
        RowError: It has no question.
    """
    row, kind = placed.row, _format_of(placed.row)
    if kind is not None:
        # A chat template writes no reasoning into the turns before a question.
        options = ReadOptions(folder=placed.entry.path.parent, drop_reasoning=True)
        examples = kind.examples(row, options)
        return [_split_answer(example) for example in examples]
    if isinstance(row, str):
        raise RowError("a line of text, which is not a question")
    refuse_keys(row, PAIR_KEYS, "compares or judges answers, which a prompt cannot use")
    system, turns, question = split_prompt(row)
    answer = optional_text(row, ANSWER_KEY) or None
    turns = [*turns, Turn(question, answer or UNANSWERED)]
    conversation, _ = _split_answer(conversation_of(row, turns, system))
    return [(conversation, answer)]


def _format_of(row: Row) -> Format | None:
    """The format of a row that contains an answer; None for a question alone.

    Raises:
        RowError: Its messages are malformed.
    """
    key = find_list(row) if isinstance(row, dict) else None
    if isinstance(row, dict) and key and not FORMATS["sharegpt_preference"].recognise(row):
        messages = read_messages(row[key])
        return FORMATS["sharegpt"] if messages and messages[-1].role == "assistant" else None
    formats = (entry for name, entry in FORMATS.items() if name != "text")
    return next((entry for entry in formats if entry.fits(row)), None)


def _split_answer(example: Example) -> tuple[Conversation, str | None]:
    """The question of an example, and its best answer; None if that is bad.

    Raises:
        RowError: It calls tools.
    """
    assert not isinstance(example, Text), "the text format is excluded above"
    if isinstance(example, Ranking):
        conversation, answer = example.prompt, example.candidates[example.ranks.index(0)]
    elif isinstance(example, UnpairedAnswer):
        conversation, answer = _split_answer(example.conversation)
        answer = answer if example.is_good else None
    else:
        *earlier, last = example.turns
        conversation = replace(example, turns=(*earlier, replace(last, answer="")))
        answer = last.answer
    if has_tools(conversation):
        raise RowError(NO_TOOLS)
    return conversation, answer
