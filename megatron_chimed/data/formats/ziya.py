"""Rows of the Ziya and Fengshen scripts: a list of prompts and a list of outputs, one per turn.

https://github.com/IDEA-CCNL/Fengshenbang-LM names the first list `prompt`; data made from Chunyu
dialogues names it `input`, the Huatuo-26M test file `instruction`. Several entries under
`instruction` are no dialogue but a table of alpaca rows, written column by column.
"""

from collections.abc import Sequence

from megatron_chimed.data.formats.alpaca import ALPACA
from megatron_chimed.data.formats.example import Example, Turn
from megatron_chimed.data.formats.format import Format, JsonRow, ReadOptions
from megatron_chimed.data.formats.row import (
    RowError,
    checked_text,
    conversation_of,
    list_at,
    refuse_keys,
)

PROMPT_KEYS = ("prompt", "instruction", "input")


def _prompt_key(row: JsonRow) -> str | None:
    if not isinstance(row.get("output"), list):
        return None
    return next((key for key in PROMPT_KEYS if isinstance(row.get(key), list)), None)


def _recognise(row: JsonRow) -> bool:
    return _prompt_key(row) is not None


def _read(row: JsonRow, options: ReadOptions) -> Sequence[Example]:
    key = _prompt_key(row) or PROMPT_KEYS[0]
    is_table = len(list_at(row, key)) > 1 or isinstance(row.get("input"), list)
    if key == "instruction" and is_table:
        return _read_columns(row, options)
    others = [name for name in PROMPT_KEYS if name != key]
    refuse_keys(row, others, f"is another prompt beside {key!r}; a row has one of them")
    questions, answers = list_at(row, key), list_at(row, "output")
    if len(questions) != len(answers):
        raise RowError(f"{len(questions)} entries in {key!r}, {len(answers)} in 'output'")
    pairs = zip(questions, answers, strict=True)
    turns = [Turn(checked_text(q, key), checked_text(a, "output")) for q, a in pairs]
    return (conversation_of(row, turns),)


def _read_columns(row: JsonRow, options: ReadOptions) -> Sequence[Example]:
    """A table of alpaca rows as one object of columns: one conversation per entry."""
    count = len(row["instruction"])
    lengths = {name: len(column) for name, column in row.items() if isinstance(column, list)}
    if set(lengths.values()) != {count}:
        raise RowError(f"the columns have different lengths: {lengths}")
    rows = (
        {name: column[place] if name in lengths else column for name, column in row.items()}
        for place in range(count)
    )
    return tuple(example for each in rows for example in ALPACA.examples(each, options))


ZIYA = Format(
    name="ziya",
    recognise=_recognise,
    read=_read,
    keys=frozenset({*PROMPT_KEYS, "output"}),
    sample={
        "task": "medical",
        "prompt": ["头痛三天了", "没有发烧"],
        "output": ["请问有没有发烧？", "可能是紧张性头痛，注意休息。"],
    },
)
