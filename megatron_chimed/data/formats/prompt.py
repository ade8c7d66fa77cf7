"""Prompts: rows with a question but no answer, as input to completion, scoring and sampling.

They are not a format of their own: the answer comes from elsewhere.
"""

from typing import Any

from megatron_chimed.data.formats.example import Conversation, Turn
from megatron_chimed.data.formats.keys import refuse_media
from megatron_chimed.data.formats.messages import find_list, read_messages, split_turns
from megatron_chimed.data.formats.row import RowError, context_of, conversation, text_at

NO_TOOLS = "the assistant calls tools, which prompts cannot: texts only"
UNANSWERED = "?"  # placeholder for the missing last answer while a conversation is checked


def split_prompt(row: dict[str, Any]) -> tuple[str, list[Turn], str]:
    """The part of a row before the answer: the text under `prompt`, or messages.

    Returns:
        The system prompt at the start of the messages or "", the earlier turns, and the question;
        all without the row's `system` and `history`.

    Raises:
        RowError: There is no question.
    """
    refuse_media(row)
    key = find_list(row)
    if key is None:
        return "", [], text_at(row, "prompt")
    messages = read_messages(row[key])
    if any(message.calls or message.role == "tool" for message in messages):
        raise RowError(NO_TOOLS)
    # A chat template writes no reasoning into the turns before a question.
    system, turns, question = split_turns([message._replace(reasoning="") for message in messages])
    if not messages or messages[-1].role != "user":
        raise RowError(f"there is no question after the last answer in {key!r}")
    return system, turns, question


def asked_conversation(row: dict[str, Any], answer: str | None = None) -> Conversation:
    """The conversation of a prompt, with the row's `history` and `system`.

    Args:
        row: As for `split_prompt`.
        answer: The last answer; None: there is none yet, and the last answer is "".

    Raises:
        RowError: As for `split_prompt`; an empty text; two system prompts; keys that cannot be
            used.
    """
    system, turns, question = split_prompt(row)
    history, system = context_of(row, system)
    last = Turn(question, UNANSWERED if answer is None else answer)
    found = conversation([*history, *turns, last], system)
    if answer is not None:
        return found
    return Conversation((*found.turns[:-1], Turn(question, "")), system)
