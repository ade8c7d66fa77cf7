"""Lists of messages with roles, as in ShareGPT and the chat formats that followed it."""

import json
from dataclasses import replace
from typing import Any, NamedTuple

from megatron_chimed.data.formats.example import ToolCall, ToolStep, Turn
from megatron_chimed.data.formats.keys import CALL_KEYS, LOSS_KEYS, REASONING_KEYS
from megatron_chimed.data.formats.row import NOTHING, RowError, checked_text, key_list, parse_json

LIST_KEYS = ("conversations", "messages", "conversation")
ROLES = {
    "system": "system",
    "developer": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "call",
    "tool_call": "call",
    "tool": "tool",
    "tool_response": "tool",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
}
PLAIN_KEYS = 2  # a role and a text, and nothing else


class Message(NamedTuple):
    """A message with our name of its role."""

    role: str
    """`system`, `user`, `assistant` or `tool`."""

    text: str
    """May be empty beside calls."""

    is_learned: bool = True
    """Of an assistant: whether a model is trained to write it."""

    reasoning: str = ""
    """Of an assistant: its thoughts before it."""

    calls: tuple[ToolCall, ...] = ()
    """Of an assistant: the tools that it calls."""


def is_message(value: Any) -> bool:
    """Whether a value looks like `{"from": ..., "value": ...}` or `{"role", "content"}`."""
    return _keys_of(value) is not None


def _keys_of(value: Any) -> tuple[str, str] | None:
    if isinstance(value, dict):
        for role, text in (("from", "value"), ("role", "content")):
            if role in value and text in value:
                return role, text
    return None


def find_list(row: dict[str, Any]) -> str | None:
    """The key of a row that holds a list of messages, or None."""
    for key in LIST_KEYS:
        value = row.get(key)
        if isinstance(value, list) and (not value or is_message(value[0])):
            return key
    return None


def read_messages(values: list[Any]) -> list[Message]:
    """Messages with our names of roles.

    Raises:
        RowError: A value is not a message, or its role is unknown.
    """
    messages = []
    for place, value in enumerate(values, start=1):
        keys = _keys_of(value)
        if keys is None:
            found = key_list(value) if isinstance(value, dict) else type(value).__name__
            raise RowError(f"message {place} is not {{from, value}} or {{role, content}}: {found}")
        role = checked_text(value[keys[0]], keys[0])
        if role not in ROLES:
            raise RowError(f"message {place} has role {role!r}; known are {', '.join(ROLES)}")
        role = ROLES[role]
        if len(value) == PLAIN_KEYS and role != "call":
            messages.append(Message(role, content_text(value[keys[1]], f"message {place}")))
        else:
            messages.append(_full_message(value, role, value[keys[1]], place))
    return messages


def content_text(content: Any, name: str) -> str:
    """The text of a message: a text, or a list of `{"type": "text", "text": ...}`, joined.

    Raises:
        RowError: There is another part than texts.
    """
    if not isinstance(content, list):
        return checked_text(content, name)
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if not isinstance(part, dict) or kind != "text":
            raise RowError(f"{name} has a part of type {kind!r}: only texts can be used")
        texts.append(checked_text(part.get("text"), f"{name}, part"))
    return "".join(texts)


def _full_message(value: dict[str, Any], role: str, content: Any, place: int) -> Message:
    """A message with more than a role and a text."""
    is_learned = _is_learned(value, role, place)
    if role == "call":
        return Message("assistant", "", is_learned, calls=_calls(content, place))
    reasoning = next((value[k] for k in REASONING_KEYS if value.get(k) not in NOTHING), "")
    found = next((value[k] for k in CALL_KEYS if value.get(k) not in NOTHING), None)
    calls = () if found is None else _calls(found, place)
    if role != "assistant" and (reasoning or calls):
        raise RowError(f"message {place} of role {role} thinks or calls tools")
    text = "" if content is None and calls else content_text(content, f"message {place}")
    reasoning = checked_text(reasoning, f"reasoning of message {place}")
    return Message(role, text, is_learned, reasoning, calls)


def _is_learned(value: dict[str, Any], role: str, place: int) -> bool:
    """Whether a message is learned.

    ms-swift writes `loss` or `loss_scale`, OpenAI `weight`, axolotl `train` or `training`.
    """
    found = True
    for key in LOSS_KEYS:
        flag = value.get(key)
        if flag is None:
            continue
        if flag not in (0, 1):
            raise RowError(
                f"message {place} has {key!r} {flag!r}: an answer is learned or not, 0 or 1"
            )
        if flag and role not in ("assistant", "call"):
            raise RowError(
                f"message {place} of role {role} has {key!r} {flag!r}: only answers are learned. "
                "Remove the key; --targets all learns everything"
            )
        found = found and bool(flag)
    return found


def _calls(value: Any, place: int) -> tuple[ToolCall, ...]:
    """The calls of a message: an object or a list of them, or their JSON text."""
    if isinstance(value, str):
        value = parse_json(value.encode())
    calls = []
    for entry in value if isinstance(value, list) else [value]:
        inner = entry.get("function", entry) if isinstance(entry, dict) else entry
        if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
            raise RowError(f"message {place} calls a tool without a name")
        arguments = inner.get("arguments", inner.get("parameters", {}))
        text = (
            arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        )
        name = entry.get("id")
        calls.append(ToolCall(inner["name"], text, name if isinstance(name, str) else ""))
    return tuple(calls)


def split_turns(messages: list[Message]) -> tuple[str, list[Turn], str]:
    """A system prompt, complete turns, and a last question without an answer ("" if none).

    Raises:
        RowError: Questions and answers do not alternate.
    """
    system = ""
    if messages and messages[0].role == "system":
        system, messages = messages[0].text, messages[1:]
    turns: list[Turn] = []
    question: str | None = None
    steps: list[ToolStep] = []
    for message in messages:
        role, text, is_learned, reasoning, calls = message
        if role == "user" and question is None:
            question = text
        elif role == "assistant" and question is not None and not calls:
            turns.append(Turn(question, text, is_learned, reasoning, tuple(steps)))
            question, steps = None, []
        elif role == "user" and steps and not steps[-1].results and question is not None:
            # The turn before ended with its calls.
            turns.append(Turn(question, "", steps[-1].is_learned, steps=tuple(steps)))
            question, steps = text, []
        elif role == "assistant" and question is not None:
            steps.append(ToolStep(calls, (), text, reasoning, is_learned))
        elif role == "tool" and steps:
            steps[-1] = replace(steps[-1], results=(*steps[-1].results, text))
        else:
            wanted = "user" if question is None else "assistant"
            raise RowError(f"a message of role {role} where {wanted} was expected")
    if question is not None and steps:
        if steps[-1].results:
            raise RowError("the conversation ends with a tool's result: no answer")
        turns.append(Turn(question, "", steps[-1].is_learned, steps=tuple(steps)))
        question = None
    return system, turns, question or ""
