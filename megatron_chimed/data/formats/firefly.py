"""Firefly: single tasks, and conversations as a list of {human, assistant}.

https://huggingface.co/datasets/YeungNLP/firefly-train-1.1M, and the multi-turn sets of
https://github.com/yangjianxin1/Firefly, such as YeungNLP/moss-003-sft-data.
"""

from collections.abc import Sequence
from typing import Any

from megatron_chimed.data.formats.example import Conversation, Turn
from megatron_chimed.data.formats.format import Format, JsonRow, ReadOptions
from megatron_chimed.data.formats.row import (
    RowError,
    conversation_of,
    has_texts,
    list_at,
    text_at,
)

TURN_KEYS = frozenset({"human", "assistant"})


def _recognise(row: JsonRow) -> bool:
    return has_texts(row, "input", "target")


def _read(row: JsonRow, options: ReadOptions) -> Sequence[Conversation]:
    return (conversation_of(row, [Turn(text_at(row, "input"), text_at(row, "target"))]),)


def _recognise_chat(row: JsonRow) -> bool:
    turns = row.get("conversation")
    return isinstance(turns, list) and bool(turns) and _is_turn(turns[0])


def _is_turn(value: Any) -> bool:
    return isinstance(value, dict) and set(value) >= TURN_KEYS


def _read_chat(row: JsonRow, options: ReadOptions) -> Sequence[Conversation]:
    turns = []
    for place, entry in enumerate(list_at(row, "conversation"), start=1):
        if not _is_turn(entry):
            raise RowError(f"entry {place} of 'conversation' is not {{human, assistant}}")
        turns.append(Turn(text_at(entry, "human"), text_at(entry, "assistant")))
    return (conversation_of(row, turns),)


FIREFLY = Format(
    name="firefly",
    recognise=_recognise,
    read=_read,
    keys=frozenset({"input", "target"}),
    sample={
        "kind": "MedicalQA",
        "input": "用一句话解释什么是心律失常。",
        "target": "心律失常是心跳的频率或节律异常。",
    },
)

FIREFLY_CHAT = Format(
    name="firefly_chat",
    recognise=_recognise_chat,
    read=_read_chat,
    keys=frozenset({"conversation"}),
    message_lists=("conversation",),
    message_keys=TURN_KEYS,
    sample={
        "conversation_id": 1,
        "category": "Brainstorming",
        "conversation": [
            {"human": "怎样预防中暑？", "assistant": "避开正午外出，多补水和盐。"},
            {"human": "中暑了怎么办？", "assistant": "移到阴凉处，物理降温，严重时就医。"},
        ],
        "dataset": "moss",
    },
)
