"""Huatuo-26M, encyclopedia part: wordings of a question, and its answer, in nested lists.

https://github.com/FreedomIntelligence/Huatuo-26M. Every wording becomes a conversation of its own.
The Lite part has the keys of the format `qa`; answers of the consultation part are links, not
texts.
"""

from collections.abc import Sequence
from typing import Any

from megatron_chimed.data.formats.example import Conversation, Turn
from megatron_chimed.data.formats.format import Format, JsonRow, ReadOptions
from megatron_chimed.data.formats.row import RowError, checked_text, conversation_of, list_at


def _recognise(row: JsonRow) -> bool:
    return isinstance(row.get("questions"), list) and isinstance(row.get("answers"), list)


def _read(row: JsonRow, options: ReadOptions) -> Sequence[Conversation]:
    questions, answers = list_at(row, "questions"), list_at(row, "answers")
    if len(answers) == 1 and not any(isinstance(entry, list) for entry in questions):
        questions = [questions]  # a flat list of wordings of one question
    if len(questions) != len(answers):
        raise RowError(f"{len(questions)} entries in 'questions', {len(answers)} in 'answers'")
    examples = []
    for wordings, answer in zip(questions, answers, strict=True):
        text = _first(answer)
        if text.startswith(("http://", "https://")):
            raise RowError("the answer is a link, not a text")
        for wording in wordings if isinstance(wordings, list) else [wordings]:
            turn = Turn(checked_text(wording, "questions"), text)
            examples.append(conversation_of(row, [turn]))
    if not examples:
        raise RowError("no question")
    return examples


def _first(answer: Any) -> str:
    if isinstance(answer, list):
        if len(answer) != 1:
            raise RowError(f"a question with {len(answer)} answers; one was expected")
        answer = answer[0]
    return checked_text(answer, "answers")


HUATUO = Format(
    name="huatuo",
    recognise=_recognise,
    read=_read,
    keys=frozenset({"questions", "answers"}),
    sample={
        "questions": [["曲匹地尔片的用法用量是什么？", "曲匹地尔片怎么吃？"]],
        "answers": ["口服，一次50～100mg，一日3次。"],
    },
)
