"""Rows of the Ziya and Fengshen scripts: a list of prompts and a list of outputs, one per turn.

https://github.com/IDEA-CCNL/Fengshenbang-LM names the first list `prompt`; data made from Chunyu
dialogues names it `input`, the Huatuo-26M test file `instruction`.
"""

from collections.abc import Sequence

from megatron_chimed.data.formats.example import Conversation, Turn
from megatron_chimed.data.formats.format import Format, JsonRow, ReadOptions
from megatron_chimed.data.formats.row import RowError, checked_text, conversation_of, list_at

PROMPT_KEYS = ("prompt", "input", "instruction")


def _prompt_key(row: JsonRow) -> str | None:
    if not isinstance(row.get("output"), list):
        return None
    return next((key for key in PROMPT_KEYS if isinstance(row.get(key), list)), None)


def _recognise(row: JsonRow) -> bool:
    return _prompt_key(row) is not None


def _read(row: JsonRow, options: ReadOptions) -> Sequence[Conversation]:
    key = _prompt_key(row) or PROMPT_KEYS[0]
    questions, answers = list_at(row, key), list_at(row, "output")
    if len(questions) != len(answers):
        raise RowError(f"{len(questions)} entries in {key!r}, {len(answers)} in 'output'")
    pairs = zip(questions, answers, strict=True)
    turns = [Turn(checked_text(q, key), checked_text(a, "output")) for q, a in pairs]
    return (conversation_of(row, turns),)


ZIYA = Format(
    name="ziya",
    recognise=_recognise,
    read=_read,
    keys=frozenset({*PROMPT_KEYS, "output"}),
    one_of=(PROMPT_KEYS,),
    sample={
        "task": "medical",
        "prompt": ["头痛三天了", "没有发烧"],
        "output": ["请问有没有发烧？", "可能是紧张性头痛，注意休息。"],
    },
)
