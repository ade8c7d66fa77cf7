"""ShareGPT conversations, and preference pairs in the same shape.

https://github.com/hiyouga/LLaMA-Factory/blob/main/data/README.md describes both; the sides of a
pair are plain strings, single messages, or lists of messages.
"""

from collections.abc import Sequence

from megatron_chimed.data.formats.example import Conversation, Ranking
from megatron_chimed.data.formats.format import Format, JsonRow, ReadOptions
from megatron_chimed.data.formats.messages import (
    Message,
    find_list,
    is_message,
    read_messages,
    refuse_masks,
    split_turns,
)
from megatron_chimed.data.formats.row import (
    RowError,
    conversation_of,
    list_at,
    ranking_of,
    text_at,
)


def _recognise(row: JsonRow) -> bool:
    return find_list(row) is not None


def _read(row: JsonRow, options: ReadOptions) -> Sequence[Conversation]:
    values = list_at(row, find_list(row) or "conversations")
    refuse_masks(values)
    system, turns, question = split_turns(read_messages(values))
    if question:
        raise RowError("the conversation ends with a question: no answer")
    return (conversation_of(row, turns, system),)


def _recognise_pair(row: JsonRow) -> bool:
    if _recognise(row) and row.get("rejected_response"):
        return True
    if not {"chosen", "rejected"} <= set(row):
        return False
    return _recognise(row) or isinstance(row["chosen"], list) or is_message(row["chosen"])


def read_pair(row: JsonRow, options: ReadOptions) -> Sequence[Ranking]:
    """The pair of a row with `chosen` and `rejected`.

    Raises:
        RowError: A side does not end with an answer, or the sides answer different prompts.
    """
    key = find_list(row)
    if key and row.get("rejected_response"):
        return _read_rejected_response(row, key)
    messages = read_messages(list_at(row, key)) if key else _plain_prompt(row)
    sides = [_side(row, name) for name in ("chosen", "rejected")]
    if sides[0][0] != sides[1][0]:
        raise RowError("chosen and rejected answer different prompts")
    shared = sides[0][0]
    # A list side often repeats the whole prompt before its answer.
    system, turns, question = split_turns(
        shared if shared[: len(messages)] == messages else messages + shared
    )
    answers = [answer for _, answer in sides]
    return (ranking_of(row, question, answers, (0, 1), turns=turns, system=system),)


def _read_rejected_response(row: JsonRow, key: str) -> Sequence[Ranking]:
    """A row of ms-swift: the conversation ends with the better answer."""
    messages, chosen = _split_answer(read_messages(row[key]), key)
    system, turns, question = split_turns(messages)
    answers = (chosen, text_at(row, "rejected_response"))
    return (ranking_of(row, question, answers, (0, 1), turns=turns, system=system),)


def _plain_prompt(row: JsonRow) -> list[Message]:
    prompt = row.get("prompt")
    if isinstance(prompt, list):
        return read_messages(prompt)
    return [("user", prompt)] if isinstance(prompt, str) else []


def _side(row: JsonRow, name: str) -> tuple[list[Message], str]:
    """The messages before a side's answer, and the answer."""
    side = row.get(name)
    if isinstance(side, str):
        return [], side
    return _split_answer(read_messages(side if isinstance(side, list) else [side]), name)


def _split_answer(messages: list[Message], name: str) -> tuple[list[Message], str]:
    if not messages or messages[-1][0] != "assistant":
        raise RowError(f"{name!r} does not end with an answer of the assistant")
    return messages[:-1], messages[-1][1]


SHAREGPT_PREFERENCE = Format(
    name="sharegpt_preference",
    recognise=_recognise_pair,
    read=read_pair,
    sample={
        "conversations": [{"from": "human", "value": "高血压患者能喝咖啡吗？"}],
        "chosen": "可以少量饮用，但要监测血压。",
        "rejected": "随便喝。",
    },
)

SHAREGPT = Format(
    name="sharegpt",
    recognise=_recognise,
    read=_read,
    sample={
        "conversations": [
            {"from": "human", "value": "孩子发烧38.5℃怎么办？"},
            {"from": "gpt", "value": "先物理降温，多喝水，必要时口服退热药。"},
        ]
    },
)
