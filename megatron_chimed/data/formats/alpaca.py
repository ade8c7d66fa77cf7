"""Alpaca rows, with optional history and system prompt, and preference pairs of the same shape.

The question is instruction, a newline and input, as LLaMA-Factory joins them
(https://github.com/hiyouga/LLaMA-Factory/blob/main/data/README.md). The fine-tuning part of
shibing624/medical has this shape too.
"""

from collections.abc import Sequence

from megatron_chimed.data.formats.example import Conversation, Ranking, Turn
from megatron_chimed.data.formats.format import Format, JsonRow, ReadOptions
from megatron_chimed.data.formats.row import (
    RowError,
    checked_text,
    conversation_of,
    has_texts,
    list_at,
    optional_text,
    ranking_of,
    text_at,
)


def read_alpaca(row: JsonRow, options: ReadOptions) -> Sequence[Conversation]:
    """The conversation of a row.

    Raises:
        RowError: The row has another shape, or a question or an answer is missing.
    """
    turn = Turn(_question(row), text_at(row, "output"))
    return (conversation_of(row, [turn]),)


def _recognise(row: JsonRow) -> bool:
    return has_texts(row, "instruction", "output")


def _recognise_pair(row: JsonRow) -> bool:
    if not has_texts(row, "instruction"):
        return False
    return has_texts(row, "chosen", "rejected") or isinstance(row.get("output"), list)


def _read_pair(row: JsonRow, options: ReadOptions) -> Sequence[Ranking]:
    if "chosen" in row:
        sides = [text_at(row, "chosen"), text_at(row, "rejected")]
    else:
        sides = [checked_text(side, "output") for side in list_at(row, "output")]
    if len(sides) != 2:
        raise RowError(f"'output' has {len(sides)} entries, not a good and a bad answer")
    return (ranking_of(row, _question(row), sides, (0, 1)),)


def _question(row: JsonRow) -> str:
    parts = (text_at(row, "instruction"), optional_text(row, "input"))
    return "\n".join(part for part in parts if part)


ALPACA_PREFERENCE = Format(
    name="alpaca_preference",
    recognise=_recognise_pair,
    read=_read_pair,
    keys=frozenset({"instruction", "input", "chosen", "rejected", "output"}),
    one_of=(("chosen", "output"),),
    sample={
        "instruction": "推荐一种缓解轻度失眠的方法。",
        "input": "",
        "chosen": "睡前少看手机，保持规律作息。",
        "rejected": "喝酒助眠。",
    },
)

ALPACA = Format(
    name="alpaca",
    recognise=_recognise,
    read=read_alpaca,
    keys=frozenset({"instruction", "input", "output"}),
    sample={
        "instruction": "解释检验结果。",
        "input": "空腹血糖7.8 mmol/L",
        "output": "高于正常范围，建议复查并做糖耐量试验。",
        "system": "你是一名内科医生。",
        "history": [["你好", "您好，请问有什么可以帮您？"]],
    },
)
