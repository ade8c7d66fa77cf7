"""Rows that ask and do not answer, as what is completed, scored or sampled from has them.

They are no format of their own: what answers them stands elsewhere.
"""

from typing import Any

from megatron_chimed.data.formats.example import Turn
from megatron_chimed.data.formats.messages import find_list, read_messages, split_turns
from megatron_chimed.data.formats.row import RowError, text_at


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
    system, turns, question = split_turns(read_messages(row[key]))
    if not question:
        raise RowError(f"there is no question behind the last answer in {key!r}")
    return system, turns, question
