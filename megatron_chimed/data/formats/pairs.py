"""Rows of one question and one answer, told apart by the names of their two keys."""

from collections.abc import Sequence

from megatron_chimed.data.formats.example import Conversation, Turn
from megatron_chimed.data.formats.format import Format, JsonRow, ReadOptions
from megatron_chimed.data.formats.row import conversation_of, has_texts, text_at

QA_KEYS = (("问", "答"), ("question", "answer"))


def _pair_format(name: str, question: str, answer: str, sample: JsonRow) -> Format:
    def read(row: JsonRow, options: ReadOptions) -> Sequence[Conversation]:
        return (conversation_of(row, [Turn(text_at(row, question), text_at(row, answer))]),)

    return Format(
        name=name,
        recognise=lambda row: has_texts(row, question, answer),
        read=read,
        keys=frozenset({question, answer}),
        sample=sample,
    )


def _recognise_qa(row: JsonRow) -> bool:
    return any(has_texts(row, *keys) for keys in QA_KEYS)


def _read_qa(row: JsonRow, options: ReadOptions) -> Sequence[Conversation]:
    question, answer = QA_KEYS[0] if QA_KEYS[0][0] in row else QA_KEYS[1]
    return (conversation_of(row, [Turn(text_at(row, question), text_at(row, answer))]),)


SAFETY_PROMPTS = _pair_format(
    "safety_prompts",
    "prompt",
    "response",
    {"prompt": "怎样安慰患病的朋友？", "response": "多陪伴、多倾听。", "type": "Mental_Health"},
)

SHENNONG = _pair_format(
    "shennong",
    "query",
    "response",
    {"query": "四君子汤由什么组成？", "response": "人参、白术、茯苓、甘草。"},
)

QA = Format(
    name="qa",
    recognise=_recognise_qa,
    read=_read_qa,
    keys=frozenset({"问", "答", "question", "answer"}),
    one_of=(("问", "question"), ("答", "answer")),
    sample={"问": "白带增多发黄怎么回事？", "答": "阴道炎的可能性大，请到妇科检查。"},
)
