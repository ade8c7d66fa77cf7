"""Questions and answers of medical sets: Chinese-medical-dialogue-data, medical-o1 and PubMedQA."""

from collections.abc import Sequence
from typing import Any

from megatron_chimed.data.formats.example import Conversation, Turn
from megatron_chimed.data.formats.format import Format, JsonRow, ReadOptions
from megatron_chimed.data.formats.row import (
    RowError,
    checked_text,
    conversation_of,
    has_texts,
    list_at,
    optional_text,
    text_at,
)

PUBMEDQA_KEYS = ("question", "context", "long_answer", "final_decision")
ORIGINAL_KEYS = ("QUESTION", "CONTEXTS", "LONG_ANSWER", "final_decision")  # of its own files
NO_TEXT = ("", "无")  # what the tables hold where a patient wrote a title alone


def _recognise_title_ask(row: JsonRow) -> bool:
    return has_texts(row, "title", "ask", "answer")


def _read_title_ask(row: JsonRow, options: ReadOptions) -> Sequence[Conversation]:
    """The question is the title, a newline and the text; the title is left out if repeated."""
    title, ask = optional_text(row, "title"), text_at(row, "ask")
    parts = [part for part in (title, ask) if part.strip() not in NO_TEXT]
    if len(parts) == 2 and title.strip() in ask:
        parts = [ask]
    return (conversation_of(row, [Turn("\n".join(parts), text_at(row, "answer"))]),)


def _recognise_medical_o1(row: JsonRow) -> bool:
    return has_texts(row, "Question", "Response")


def _read_medical_o1(row: JsonRow, options: ReadOptions) -> Sequence[Conversation]:
    return (conversation_of(row, [Turn(text_at(row, "Question"), text_at(row, "Response"))]),)


def _recognise_pubmedqa(row: JsonRow) -> bool:
    return any(
        has_texts(row, question, answer) and context in row
        for question, context, answer, _ in (PUBMEDQA_KEYS, ORIGINAL_KEYS)
    )


def _read_pubmedqa(row: JsonRow, options: ReadOptions) -> Sequence[Conversation]:
    """The question follows the abstract; the long answer follows yes, no or maybe."""
    keys = ORIGINAL_KEYS if ORIGINAL_KEYS[0] in row else PUBMEDQA_KEYS
    question_key, context_key, answer_key, decision_key = keys
    question = "\n\n".join([*_contexts(row.get(context_key)), text_at(row, question_key)])
    answer = [optional_text(row, decision_key), text_at(row, answer_key)]
    if not answer[1].strip():
        raise RowError("no answer")
    turn = Turn(question, "\n".join(part for part in answer if part))
    return (conversation_of(row, [turn]),)


def _contexts(context: Any) -> list[str]:
    if isinstance(context, str):
        return [context] if context else []
    paragraphs = list_at(context, "contexts") if isinstance(context, dict) else context
    if not isinstance(paragraphs, list):
        raise RowError("'context' is neither a text nor an object with 'contexts'")
    return [checked_text(text, "contexts") for text in paragraphs]


# Names of the paragraphs, terms, and what annotators predicted are dropped.
ABOUT_PUBMEDQA = ("LABELS", "MESHES", "reasoning_required_pred", "reasoning_free_pred")

TITLE_ASK = Format(
    name="title_ask",
    recognise=_recognise_title_ask,
    read=_read_title_ask,
    keys=frozenset({"title", "ask", "answer"}),
    sample={
        "department": "心血管科",
        "title": "高血压能吃党参吗",
        "ask": "我有高血压两年了，最近想用党参泡水，可以吗？",
        "answer": "可以少量饮用，但要监测血压，并按时服药。",
    },
)

MEDICAL_O1 = Format(
    name="medical_o1",
    recognise=_recognise_medical_o1,
    read=_read_medical_o1,
    keys=frozenset({"Question", "Response"}),
    sample={
        "Question": "突发胸痛并向左肩放射，首先考虑什么？",
        "Complex_CoT": "胸痛放射到左肩，心源性最危险，先排除它。",
        "Response": "首先考虑急性冠脉综合征，应立即做心电图。",
    },
)

PUBMEDQA = Format(
    name="pubmedqa",
    recognise=_recognise_pubmedqa,
    read=_read_pubmedqa,
    keys=frozenset({*PUBMEDQA_KEYS, *ORIGINAL_KEYS, *ABOUT_PUBMEDQA}),
    one_of=tuple(zip(PUBMEDQA_KEYS[:3], ORIGINAL_KEYS[:3], strict=True)),
    sample={
        "pubid": 1,
        "question": "Does daily walking lower blood pressure?",
        "context": {
            "contexts": [
                "120 adults walked 30 minutes a day.",
                "Systolic pressure fell by 6 mmHg.",
            ],
            "labels": ["METHODS", "RESULTS"],
            "meshes": ["Adult", "Walking"],
        },
        "long_answer": "Daily walking lowered systolic blood pressure in adults.",
        "final_decision": "yes",
    },
)
