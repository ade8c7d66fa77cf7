"""ChiMed: one question with the answers of up to two doctors, each a conversation of its own.

https://github.com/yuanheTian/ChiMed. Which answer the patient adopted (`adopted_1`, `adopted_2`) is
not used: both are learned.
"""

from collections.abc import Sequence

from megatron_chimed.data.formats.example import Conversation, Turn
from megatron_chimed.data.formats.format import Format, JsonRow, ReadOptions
from megatron_chimed.data.formats.row import (
    RowError,
    conversation_of,
    has_texts,
    optional_text,
    text_at,
)

ABOUT_ANSWERS = {f"{name}_{n}" for name in ("specialty", "adopted") for n in (1, 2)}


def _recognise(row: JsonRow) -> bool:
    return has_texts(row, "question", "answer_1") and "answer_2" in row


def _read(row: JsonRow, options: ReadOptions) -> Sequence[Conversation]:
    question = text_at(row, "question")
    answers = [optional_text(row, key) for key in ("answer_1", "answer_2")]
    answers = [answer for answer in dict.fromkeys(answers) if answer.strip()]
    if not answers:
        raise RowError("no answer")
    return tuple(conversation_of(row, [Turn(question, answer)]) for answer in answers)


CHIMED = Format(
    name="chimed",
    recognise=_recognise,
    read=_read,
    keys=frozenset({"question", "answer_1", "answer_2"} | ABOUT_ANSWERS),
    sample={
        "question": "宝宝出牙晚是缺钙吗？",
        "answer_1": "不一定，出牙早晚与遗传也有关。",
        "specialty_1": "儿科",
        "adopted_1": True,
        "answer_2": "可以查一下微量元素。",
        "specialty_2": "儿保科",
        "adopted_2": False,
    },
)
