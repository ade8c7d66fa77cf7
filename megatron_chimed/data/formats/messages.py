"""Lists of messages with roles, as in ShareGPT and the chat formats that followed it."""

from typing import Any

from megatron_chimed.data.formats.example import Turn
from megatron_chimed.data.formats.row import RowError, checked_text, key_list

LIST_KEYS = ("conversations", "messages", "conversation")
LOSS_KEYS = ("loss", "loss_scale", "train", "weight")
ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}

Message = tuple[str, str]
"""Role (a value of `ROLES`) and text."""


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
        messages.append((ROLES[role], content_text(value[keys[1]], f"message {place}")))
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


def refuse_masks(values: list[Any]) -> None:
    """Refuses answers with their own weight in the loss.

    ms-swift writes `loss` or `loss_scale`, OpenAI `weight`, axolotl `train` into a message.

    Raises:
        RowError: A message of the assistant has such a key with a value other than true or 1.
    """
    for place, value in enumerate(values, start=1):
        keys = _keys_of(value)
        if keys is None or ROLES.get(str(value[keys[0]])) != "assistant":
            continue
        for key in LOSS_KEYS:
            if value.get(key) not in (None, True):
                raise RowError(
                    f"message {place} has {key!r} {value[key]!r}: all answers have equal weight. "
                    "Remove the key; --targets last learns only the last answer"
                )


def split_turns(messages: list[Message]) -> tuple[str, list[Turn], str]:
    """A system prompt, complete turns, and a last question without an answer ("" if none).

    Raises:
        RowError: Questions and answers do not alternate.
    """
    system = ""
    if messages and messages[0][0] == "system":
        system, messages = messages[0][1], messages[1:]
    for place, (role, _) in enumerate(messages):
        wanted = ("user", "assistant")[place % 2]
        if role != wanted:
            raise RowError(f"a message of role {role} where {wanted} was expected")
    texts = [text for _, text in messages]
    turns = [Turn(*pair) for pair in zip(texts[0::2], texts[1::2], strict=False)]
    return system, turns, texts[-1] if len(texts) % 2 else ""
