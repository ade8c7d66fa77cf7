"""Prompt and completion, each a text or a list of messages.

https://huggingface.co/docs/trl/dataset_formats
"""

from collections.abc import Sequence
from typing import Any

from megatron_chimed.data.formats.example import Conversation
from megatron_chimed.data.formats.format import Format, JsonRow, ReadOptions
from megatron_chimed.data.formats.messages import (
    Message,
    is_message,
    read_messages,
    split_turns,
)
from megatron_chimed.data.formats.row import RowError, checked_text, conversation_of

SIDES = {"prompt": "user", "completion": "assistant"}


def _recognise(row: JsonRow) -> bool:
    return all(_is_side(row.get(key)) for key in SIDES)


def _is_side(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and is_message(value[0])
    return isinstance(value, str) or is_message(value)


def _read(row: JsonRow, options: ReadOptions) -> Sequence[Conversation]:
    messages = [message for key in SIDES for message in _messages(row, key)]
    system, turns, question = split_turns(messages)
    if question:
        raise RowError("the conversation ends with a question: no answer")
    return (conversation_of(row, turns, system),)


def _messages(row: JsonRow, key: str) -> list[Message]:
    value = row.get(key)
    if isinstance(value, list | dict):
        values = value if isinstance(value, list) else [value]
        return read_messages(values)
    return [Message(SIDES[key], checked_text(value, key))]


PROMPT_COMPLETION = Format(
    name="prompt_completion",
    recognise=_recognise,
    read=_read,
    keys=frozenset(SIDES),
    message_lists=tuple(SIDES),
    sample={
        "prompt": [{"role": "user", "content": "布洛芬饭前吃还是饭后吃？"}],
        "completion": [{"role": "assistant", "content": "饭后吃，以减少对胃的刺激。"}],
    },
)
