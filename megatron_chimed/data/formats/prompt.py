"""Rows that ask and do not answer, as what is completed, scored or sampled from has them.

They are no format of their own: what answers them stands elsewhere.
"""

from typing import Any

from megatron_chimed.data.formats.example import Conversation, Turn
from megatron_chimed.data.formats.messages import find_list, read_messages, split_turns
from megatron_chimed.data.formats.row import RowError, context_of, conversation, text_at

UNANSWERED = "?"  # stands in where a conversation is checked that has no last answer yet


def split_prompt(row: dict[str, Any]) -> tuple[str, list[Turn], str]:
    """What a row says before an answer: the text under `prompt`, or messages.

    Returns:
        The system prompt that the messages start with or "", their earlier turns, and the question.
        What `system` and `history` of the row say comes on top.

    Raises:
        RowError: There is no question.
    """
    key = find_list(row)
    if key is None:
        return "", [], text_at(row, "prompt")
    messages = read_messages(row[key])
    system, turns, question = split_turns(messages)
    if not messages or messages[-1][0] != "user":
        raise RowError(f"there is no question behind the last answer in {key!r}")
    return system, turns, question


def asked_conversation(row: dict[str, Any], answer: str | None = None) -> Conversation:
    """What a row asks, behind its `history` and its `system`.

    Args:
        row: As of `split_prompt`.
        answer: The last answer; None: it is still to come, and "" stands in its place.

    Raises:
        RowError: As of `split_prompt`; a text without content; two system prompts; keys that cannot
            be used.
    """
    system, turns, question = split_prompt(row)
    history, system = context_of(row, system)
    last = Turn(question, UNANSWERED if answer is None else answer)
    found = conversation([*history, *turns, last], system)
    if answer is not None:
        return found
    return Conversation((*found.turns[:-1], Turn(question, "")), system)
