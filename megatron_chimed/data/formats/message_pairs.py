"""Preference pairs whose answers are whole conversations under keys of their own.

`chosen_messages` and `rejected_messages`; or, as ms-swift writes it, `messages` that end with the
better answer, and `rejected_messages`
(https://github.com/modelscope/ms-swift/blob/main/docs/source/Customization/).
"""

from collections.abc import Sequence

from megatron_chimed.data.formats.example import Ranking
from megatron_chimed.data.formats.format import Format, JsonRow, ReadOptions
from megatron_chimed.data.formats.messages import is_message
from megatron_chimed.data.formats.row import list_at
from megatron_chimed.data.formats.sharegpt import read_pair

REJECTED = "rejected_messages"
CHOSEN_KEYS = ("chosen_messages", "messages")


def _recognise(row: JsonRow) -> bool:
    return _has_messages(row, REJECTED) and any(_has_messages(row, key) for key in CHOSEN_KEYS)


def _has_messages(row: JsonRow, key: str) -> bool:
    value = row.get(key)
    return isinstance(value, list) and bool(value) and is_message(value[0])


def _read(row: JsonRow, options: ReadOptions) -> Sequence[Ranking]:
    key = next((key for key in CHOSEN_KEYS if key in row), CHOSEN_KEYS[0])
    sides = {"chosen": list_at(row, key), "rejected": list_at(row, REJECTED)}
    rest = {name: value for name, value in row.items() if name not in (key, REJECTED)}
    return read_pair({**rest, **sides}, options)


MESSAGE_PAIRS = Format(
    name="message_pairs",
    recognise=_recognise,
    read=_read,
    keys=frozenset({*CHOSEN_KEYS, REJECTED, "prompt"}),
    message_lists=(*CHOSEN_KEYS, REJECTED, "prompt"),
    sample={
        "chosen_messages": [
            {"role": "user", "content": "阿司匹林能随便吃吗？"},
            {"role": "assistant", "content": "不能，有出血风险，应遵医嘱。"},
        ],
        "rejected_messages": [
            {"role": "user", "content": "阿司匹林能随便吃吗？"},
            {"role": "assistant", "content": "能，每天吃。"},
        ],
    },
)
