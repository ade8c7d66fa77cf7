"""Conversations as lists of strings that alternate between user and assistant.

HuatuoGPT (https://github.com/FreedomIntelligence/HuatuoGPT) marks who speaks, `问：` or `答：`.
HuatuoGPT-II (https://github.com/FreedomIntelligence/HuatuoGPT-II) and UltraChat
(https://github.com/thunlp/UltraChat) do not; the rows of HuatuoGPT-II are the lists themselves.
"""

import re
from collections.abc import Sequence
from typing import Any

from megatron_chimed.data.formats.example import Conversation
from megatron_chimed.data.formats.format import Format, JsonRow, ReadOptions
from megatron_chimed.data.formats.messages import Message, split_turns
from megatron_chimed.data.formats.row import RowError, checked_text, conversation_of, list_at

LIST_KEY = "data"
MARK = re.compile(r"\s*(?:<(?P<framed>[问答])>|(?P<plain>[问答]))[：:]")
ROLES = ("user", "assistant")


def row_of_list(value: Any) -> Any:
    """The row that a value of a file stands for: a list of strings is one under `data`."""
    if isinstance(value, list) and len(value) > 1 and all(isinstance(text, str) for text in value):
        return {LIST_KEY: value}
    return value


def _recognise(row: JsonRow) -> bool:
    strings = row.get(LIST_KEY)
    return isinstance(strings, list) and bool(strings) and isinstance(strings[0], str)


def _recognise_marked(row: JsonRow) -> bool:
    return _recognise(row) and MARK.match(row[LIST_KEY][0]) is not None


def _read(row: JsonRow, options: ReadOptions) -> Sequence[Conversation]:
    strings = [checked_text(value, LIST_KEY) for value in list_at(row, LIST_KEY)]
    if strings and MARK.match(strings[0]):
        strings = [_unmarked(text, place) for place, text in enumerate(strings)]
    messages = [Message(ROLES[place % 2], text) for place, text in enumerate(strings)]
    _, turns, question = split_turns(messages)
    if question:
        raise RowError("the conversation ends with a question: no answer")
    return (conversation_of(row, turns),)


def _unmarked(text: str, place: int) -> str:
    match = MARK.match(text)
    wanted = "问答"[place % 2]
    if match is None or (match["framed"] or match["plain"]) != wanted:
        raise RowError(f"entry {place + 1} of {LIST_KEY!r} does not start with {wanted}：")
    return text[match.end() :]


HUATUOGPT = Format(
    name="huatuogpt",
    recognise=_recognise_marked,
    read=_read,
    keys=frozenset({LIST_KEY}),
    sample={"data": ["问：吃什么可以补铁？", "答：可以多吃红肉、动物肝脏和菠菜。"]},
)

ULTRACHAT = Format(
    name="ultrachat",
    recognise=_recognise,
    read=_read,
    keys=frozenset({LIST_KEY}),
    sample={
        "id": "0",
        "data": [
            "膝盖上下楼时疼，是什么原因？",
            "可能是髌骨软化或半月板损伤。",
            "要拍片吗？",
            "先查体，必要时做磁共振。",
        ],
    },
)
