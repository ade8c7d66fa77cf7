"""Prompts as the messages of a chat."""

from megatron_chimed.data.formats.example import Conversation


def messages_of(rendered: str | Conversation) -> list[dict[str, str]]:
    """Messages up to the question that is asked; a text is a user's message."""
    if isinstance(rendered, str):
        return [{"role": "user", "content": rendered}]
    messages = [{"role": "system", "content": rendered.system}] if rendered.system else []
    for turn in rendered.turns[:-1]:
        messages.append({"role": "user", "content": turn.question})
        messages.append({"role": "assistant", "content": turn.answer})
    return [*messages, {"role": "user", "content": rendered.turns[-1].question}]
