"""Verifies that `transformers` gives the ids of our template for an exported folder."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from megatron_chimed.data.formats.example import Conversation, ToolCall, ToolStep, Turn
from megatron_chimed.data.templates.encoding import Encoded, encode_conversations, encode_prompts
from megatron_chimed.data.templates.family_template import FamilyTemplate
from megatron_chimed.data.templates.segment_template import SegmentTemplate
from megatron_chimed.data.templates.template import Template
from megatron_chimed.errors import CheckpointError
from megatron_chimed.tokenizer import Tokenizer
from megatron_chimed.tokenizer.concatenation import recognised_only_by_transformers

Messages = list[dict[str, Any]]

SYSTEM = "你是一名医生。"
TOOLS = '[{"type": "function", "function": {"name": "bmi", "description": "体重", "strict": true}}]'
# Where templates and tokenizers are known to disagree, as (question, answer) pairs.
DIALOGUES = (
    (("发热怎么办？", "多饮水，必要时就诊。"),),
    (
        ("患者男，35岁，“发热伴咳嗽3天”。", "体温38.5℃，血压120/80mmHg。"),
        ("吃什么药？", "阿莫西林胶囊 0.5g tid po × 7d"),
        ("What about fever?", "Drink water & rest."),
    ),
    ((" 前导空格", " 前导空格"), ("尾随空格 ", "尾随空格  "), ("   ", "  "), ("好", "好")),
    (("第一行\n第二行\n", "\n开头\n\n结尾\n"), ("\n", "\n"), ("\t制表\t", "\r\n回车\r\n")),
    (("{question} {{ x }} {% y %} {# z #}", "\"引号\" \\ '\\n'"), ("{0} %s", "[a]: <b>:")),
    (("😀👍🏽 𠮷 龘 e\u0301 ①", "İ é Ελλάδα　全角"), ("a", "b")),
)


def check_chat_template(
    folder: str | os.PathLike, tokenizer: Tokenizer, template: Template
) -> None:
    """Compares the ids of built-in conversations, as a whole and as prompts for generation.

    Args:
        folder: A Hugging Face folder with a chat template.
        tokenizer: The tokenizer written there.
        template: The template from which the chat template was made.

    Raises:
        CheckpointError: Ids differ, or the chat template refuses a valid conversation.
    """
    from jinja2 import TemplateError
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(os.fspath(folder), trust_remote_code=False)
    for conversation, may_refuse in _conversations(tokenizer, template):
        for messages, expected in _expectations(tokenizer, template, conversation):
            is_prompt = messages[-1]["role"] != "assistant"
            tools = {"tools": json.loads(conversation.tools)} if conversation.tools else {}
            try:
                found = theirs.apply_chat_template(
                    messages, add_generation_prompt=is_prompt, return_dict=False, **tools
                )
            except TemplateError as error:
                if may_refuse:
                    continue
                raise _disagreement(folder, template, f"refuses {messages}: {error}") from None
            if list(found) != expected:
                what = f"gives {messages} the ids {list(found)}, but training used {expected}."
                raise _disagreement(folder, template, what)


def messages_of(conversation: Conversation) -> Messages:
    """A conversation as messages of a chat template; without the last answer if it is empty."""
    messages: Messages = []
    if conversation.system:
        messages.append({"role": "system", "content": conversation.system})
    for turn in conversation.turns:
        messages.append({"role": "user", "content": turn.question})
        for step in turn.steps:
            calls = [
                {"type": "function", "id": call.id, "function": _function(call)}
                for call in step.calls
            ]
            said = {"role": "assistant", "content": step.text, "tool_calls": calls}
            messages.append(said | _thought(step))
            messages += [
                {"role": "tool", "content": result, "tool_call_id": call.id}
                for call, result in zip(step.calls, step.results, strict=True)
            ]
        messages.append({"role": "assistant", "content": turn.answer} | _thought(turn))
    return messages if conversation.turns[-1].answer else messages[:-1]


def _function(call: ToolCall) -> dict[str, Any]:
    return {"name": call.name, "arguments": json.loads(call.arguments)}


def _thought(said: Turn | ToolStep) -> dict[str, Any]:
    return {"reasoning_content": said.reasoning} if said.reasoning else {}


def _conversations(tokenizer: Tokenizer, template: Template) -> Iterator[tuple[Conversation, bool]]:
    """Conversations, and whether refusing one is correct: no text has its ids in transformers."""
    for number, pairs in enumerate(DIALOGUES):
        turns = tuple(Turn(*pair) for pair in pairs)
        # A prompt that ends with the question meets the answer after a space.
        may_refuse = (
            number == 2
            and isinstance(template, SegmentTemplate)
            and template.prompt.endswith("{question}")
        )
        yield Conversation(turns), may_refuse
        yield Conversation(turns, SYSTEM), may_refuse
    first = (Turn("头痛", "多休息"), Turn("还发热", "请就诊"))
    for system in (" 医生 ", "医生\n", "\n"):
        yield Conversation(first, system), system.endswith(" ")
    thoughtful = Conversation(tuple(replace(turn, reasoning=" 想\n一想\n") for turn in first))
    call = ToolCall("bmi", '{"kg": 70, "名": "甲"}', "a1B2c3D4e")
    step = ToolStep((call,), ('{"bmi": "24"}',))
    asked = Conversation((first[0], replace(first[1], steps=(step, step))), SYSTEM, TOOLS)
    yield from ((item, False) for item in (thoughtful, asked) if not template.misfit(item))
    tags = template.tags_for(tokenizer).tags
    added = (token for token in tokenizer.added_tokens if token in tokenizer.recognised)
    words = dict.fromkeys((*tags, *added))
    for word in words:
        turns = (Turn(f"{word}问{word}", f"{word}答 {word}"), Turn(word, f"a{word}b"))
        is_removed = isinstance(template, FamilyTemplate)  # its Jinja text refuses instead
        yield Conversation(turns, f"{word}系统{word}"), is_removed
    for word in recognised_only_by_transformers(tokenizer):
        yield Conversation((Turn(f"a{word}b", "答"),)), True


def _expectations(
    tokenizer: Tokenizer, template: Template, conversation: Conversation
) -> Iterator[tuple[Messages, list[int]]]:
    """Messages and our ids: of the whole conversation, then up to each of its answers."""
    (encoded,) = encode_conversations(tokenizer, template, [conversation])
    if isinstance(encoded, Encoded):  # an answer of nothing but tags is dropped
        yield messages_of(conversation), encoded.ids.tolist()
    for number, turn in enumerate(conversation.turns):
        turns = (*conversation.turns[:number], replace(turn, answer="", reasoning=""))
        prompt = replace(conversation, turns=turns)
        (ids,) = encode_prompts(tokenizer, template, [prompt])
        yield messages_of(prompt), ids


def _disagreement(folder: Any, template: Template, what: str) -> CheckpointError:
    return CheckpointError(
        f"{folder}: the chat template made of template {template.name!r} {what} With other ids "
        "than in training, the model would answer worse. Nothing was exported; to export without "
        "a chat template, pass --without-chat-template."
    )
