"""Instruction sets told apart by their keys: OpenOrca, Dolly, and rows of input and output."""

from collections.abc import Sequence

from megatron_chimed.data.formats.example import Conversation, Turn
from megatron_chimed.data.formats.format import Format, JsonRow, ReadOptions
from megatron_chimed.data.formats.row import (
    conversation_of,
    has_texts,
    optional_text,
    text_at,
)


def _recognise_open_orca(row: JsonRow) -> bool:
    return has_texts(row, "question", "response")


def _read_open_orca(row: JsonRow, options: ReadOptions) -> Sequence[Conversation]:
    turn = Turn(text_at(row, "question"), text_at(row, "response"))
    return (conversation_of(row, [turn], optional_text(row, "system_prompt")),)


def _recognise_dolly(row: JsonRow) -> bool:
    return has_texts(row, "instruction", "response")


def _read_dolly(row: JsonRow, options: ReadOptions) -> Sequence[Conversation]:
    parts = (text_at(row, "instruction"), optional_text(row, "context"))
    question = "\n".join(part for part in parts if part)
    return (conversation_of(row, [Turn(question, text_at(row, "response"))]),)


def _recognise_input_output(row: JsonRow) -> bool:
    return has_texts(row, "input", "output")


def _read_input_output(row: JsonRow, options: ReadOptions) -> Sequence[Conversation]:
    return (conversation_of(row, [Turn(text_at(row, "input"), text_at(row, "output"))]),)


OPEN_ORCA = Format(
    name="open_orca",
    recognise=_recognise_open_orca,
    read=_read_open_orca,
    keys=frozenset({"system_prompt", "question", "response"}),
    sample={
        "id": "flan.1",
        "system_prompt": "你是一名耐心的医学老师。",
        "question": "什么是收缩压？",
        "response": "心脏收缩时动脉内的最高压力，俗称高压。",
    },
)

DOLLY = Format(
    name="dolly",
    recognise=_recognise_dolly,
    read=_read_dolly,
    keys=frozenset({"instruction", "context", "response"}),
    sample={
        "instruction": "根据资料，成人每天要睡几小时？",
        "context": "多数指南建议成人每晚睡7到9小时。",
        "response": "7到9小时。",
        "category": "closed_qa",
    },
)

INPUT_OUTPUT = Format(
    name="input_output",
    recognise=_recognise_input_output,
    read=_read_input_output,
    keys=frozenset({"input", "output"}),
    sample={"input": "鼻塞流清涕三天。", "output": "多为风寒感冒，注意保暖，多喝热水。"},
)
