"""ShareGPT conversations, and preference pairs in the same shape.

https://github.com/hiyouga/LLaMA-Factory/blob/main/data/README.md describes both; the sides of a
pair are plain strings, single messages, or lists of messages.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from megatron_chimed.data.formats.example import Conversation, Ranking, Turn
from megatron_chimed.data.formats.format import Format, JsonRow, ReadOptions
from megatron_chimed.data.formats.messages import (
    LIST_KEYS,
    Message,
    find_list,
    is_message,
    read_messages,
    split_turns,
)
from megatron_chimed.data.formats.row import (
    COMPARED,
    NOTHING,
    RowError,
    conversation_of,
    list_at,
    ranking_of,
    refuse_keys,
    text_at,
)


def _recognise(row: JsonRow) -> bool:
    return find_list(row) is not None


def _read(row: JsonRow, options: ReadOptions) -> Sequence[Conversation]:
    values = list_at(row, find_list(row) or "conversations")
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
    sides = [_side(row, name) for name in ("chosen", "rejected")]
    if sides[0][0] != sides[1][0]:
        raise RowError("chosen and rejected answer different prompts")
    shared = sides[0][0]
    prompts = [read_messages(list_at(row, name)) for name in LIST_KEYS if row.get(name)]
    # UltraFeedback repeats the chosen conversation under a key of its own.
    prompts = [_without_answer(messages, sides[0][1].text) for messages in prompts]
    if len(prompts) > 1 and prompts[0] != prompts[1]:
        raise RowError(f"{' and '.join(map(repr, LIST_KEYS))} differ: a row has one of them")
    messages = prompts[0] if prompts else _plain_prompt(row, shared)
    if prompts and row.get("prompt") not in NOTHING:
        _refuse_other_prompt(row["prompt"], messages or shared)
    # A list side often repeats the whole prompt before its answer.
    system, turns, question = split_turns(
        shared if shared[: len(messages)] == messages else messages + shared
    )
    return _pair(row, question, [answer for _, answer in sides], turns, system)


def _read_rejected_response(row: JsonRow, key: str) -> Sequence[Ranking]:
    """A row of ms-swift: the conversation ends with the better answer."""
    others = [name for name in (*LIST_KEYS, "prompt", "chosen", "rejected") if name != key]
    refuse_keys(row, others, "is another text of a row that has 'rejected_response'; remove one")
    messages, chosen = _split_answer(read_messages(row[key]), key)
    system, turns, question = split_turns(messages)
    answers = [chosen, Message("assistant", text_at(row, "rejected_response"))]
    return _pair(row, question, answers, turns, system)


def _pair(
    row: JsonRow, question: str, answers: list[Message], turns: list[Turn], system: str
) -> Sequence[Ranking]:
    texts = [answer.text for answer in answers]
    pair = ranking_of(row, question, texts, (0, 1), turns=turns, system=system)
    reasonings = tuple(answer.reasoning for answer in answers)
    return (replace(pair, reasonings=reasonings) if any(reasonings) else pair,)


def _plain_prompt(row: JsonRow, shared: list[Message]) -> list[Message]:
    """The messages of `prompt`, which may be a text that the sides repeat."""
    prompt = row.get("prompt")
    if isinstance(prompt, list):
        return read_messages(prompt)
    if not isinstance(prompt, str) or not prompt:
        return []
    if shared:
        _refuse_other_prompt(prompt, shared)
        return []
    return [Message("user", prompt)]


def _without_answer(messages: list[Message], answer: str) -> list[Message]:
    is_answered = messages[-1][:2] == ("assistant", answer)
    return messages[:-1] if is_answered else messages


def _refuse_other_prompt(prompt: Any, messages: list[Message]) -> None:
    """Refuses a `prompt` that says something else than the messages before the answers."""
    if isinstance(prompt, list):
        is_same = read_messages(prompt) == messages
    else:  # of several turns some repeat the first question, some the last
        questions = [message.text.strip() for message in messages if message.role == "user"]
        is_same = isinstance(prompt, str) and prompt.strip() in questions
    if not is_same:
        raise RowError("'prompt' is none of the questions before the answers: remove one of them")


def _side(row: JsonRow, name: str) -> tuple[list[Message], Message]:
    """The messages before a side's answer, and the answer."""
    side = row.get(name)
    if isinstance(side, str):
        return [], Message("assistant", side)
    return _split_answer(read_messages(side if isinstance(side, list) else [side]), name)


def _split_answer(messages: list[Message], name: str) -> tuple[list[Message], Message]:
    if not messages or messages[-1].role != "assistant":
        raise RowError(f"{name!r} does not end with an answer of the assistant")
    last = messages[-1]
    if last.calls:
        raise RowError(f"{name!r} ends with a call of a tool, which cannot be compared")
    if not last.is_learned:
        raise RowError(f"{name!r} ends with a masked answer, but {COMPARED}")
    return messages[:-1], last


SHAREGPT_PREFERENCE = Format(
    name="sharegpt_preference",
    recognise=_recognise_pair,
    read=read_pair,
    keys=frozenset({*LIST_KEYS, "prompt", "chosen", "rejected", "rejected_response"}),
    message_lists=(*LIST_KEYS, "prompt", "chosen", "rejected"),
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
    keys=frozenset(LIST_KEYS),
    one_of=(LIST_KEYS,),
    message_lists=LIST_KEYS,
    sample={
        "conversations": [
            {"from": "human", "value": "孩子发烧38.5℃怎么办？"},
            {"from": "gpt", "value": "先物理降温，多喝水，必要时口服退热药。"},
        ]
    },
)
