"""MOSS: turns in an object, each part between its own marks, or all in one text.

https://github.com/OpenLMLab/MOSS: `chat` holds `turn_1`, `turn_2`, ... (moss-003-sft-data);
`plain_text` holds `[Human]: ...<eoh> [MOSS]: ...<eoa>` (moss-002-sft-data).
"""

import re
from collections.abc import Sequence

from megatron_chimed.data.formats.example import Conversation, Turn
from megatron_chimed.data.formats.format import Format, JsonRow, ReadOptions
from megatron_chimed.data.formats.messages import Message, split_turns
from megatron_chimed.data.formats.row import (
    RowError,
    conversation_of,
    has_texts,
    optional_text,
    text_at,
)

TURN = re.compile(r"turn_(\d+)")
PART = re.compile(r"\s*<\|[^|<>]+\|>: ?(.*?)(?:<eo[a-z]>)?\s*", re.DOTALL)
UTTERANCE = re.compile(r"\s*\[(Human|MOSS)\]: ?(.*?)<eo[a-z]>\s*", re.DOTALL)
SPEAKERS = {"Human": "user", "MOSS": "assistant"}
TOOL_PARTS = ("Inner Thoughts", "Commands", "Tool Responses")
NONE = "None"  # what the set holds where a turn uses no tool


def _recognise(row: JsonRow) -> bool:
    chat = row.get("chat")
    if isinstance(chat, dict) and isinstance(chat.get("turn_1"), dict):
        return True
    return has_texts(row, "plain_text") and UTTERANCE.match(row["plain_text"]) is not None


def _read(row: JsonRow, options: ReadOptions) -> Sequence[Conversation]:
    turns = _plain_turns(text_at(row, "plain_text")) if "chat" not in row else _chat_turns(row)
    system = optional_text(row, "meta_instruction") or optional_text(row, "prefix")
    return (conversation_of(row, turns, system.strip()),)


def _chat_turns(row: JsonRow) -> list[Turn]:
    chat = row["chat"]
    if not isinstance(chat, dict) or not all(map(TURN.fullmatch, chat)):
        raise RowError("'chat' is not an object of turn_1, turn_2, ...")
    numbers = sorted(int(name.removeprefix("turn_")) for name in chat)
    turns = []
    for number in numbers:
        parts = chat.get(f"turn_{number}")
        if not isinstance(parts, dict):
            raise RowError(f"turn_{number} is not an object of Human and MOSS")
        for name in TOOL_PARTS:
            if _part(optional_text(parts, name)) not in ("", NONE):
                raise RowError(f"turn_{number} has {name!r}: tools cannot be used")
        turns.append(Turn(_part(text_at(parts, "Human")), _part(text_at(parts, "MOSS"))))
    return turns


def _part(text: str) -> str:
    """The words of a part, without `<|Human|>: ` before and `<eoh>` after them."""
    match = PART.fullmatch(text)
    return (match[1] if match else text).strip()


def _plain_turns(text: str) -> list[Turn]:
    messages, end = [], 0
    for match in UTTERANCE.finditer(text):
        if match.start() != end:
            break
        messages.append(Message(SPEAKERS[match[1]], match[2].strip()))
        end = match.end()
    if end != len(text):
        raise RowError(f"'plain_text' has {text[end : end + 20]!r} between its turns")
    _, turns, question = split_turns(messages)
    if question:
        raise RowError("the conversation ends with a question: no answer")
    return turns


MOSS = Format(
    name="moss",
    recognise=_recognise,
    read=_read,
    keys=frozenset({"chat", "plain_text", "meta_instruction", "prefix"}),
    sample={
        "conversation_id": 1,
        "meta_instruction": "MOSS是一个乐于助人的助手。\n",
        "num_turns": 1,
        "chat": {
            "turn_1": {
                "Human": "<|Human|>: 发烧要多喝水吗？<eoh>\n",
                "Inner Thoughts": "<|Inner Thoughts|>: None<eot>\n",
                "Commands": "<|Commands|>: None<eoc>\n",
                "Tool Responses": "<|Results|>: None<eor>\n",
                "MOSS": "<|MOSS|>: 要，补足水分有助于退热。<eom>\n",
            }
        },
    },
)
