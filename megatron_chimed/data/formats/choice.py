"""Multiple choice questions as conversations: CMMLU and C-Eval, MedQA, CMExam, and Ziya's own rows.

The wording is that of the supervised fine-tuning of ChiMed-GPT: the question, a blank line, the
choices as `A.text`; the answer is the right choice in the same form, several of them line by line.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from megatron_chimed.data.formats.exam import (
    ANSWERS,
    EXPLANATIONS,
    LABEL,
    LETTERS,
    OPTION_LINE,
    ExamQuestion,
    agreed_letters,
    choices_of,
    exam_question,
    right_letters,
)
from megatron_chimed.data.formats.example import Conversation, Turn
from megatron_chimed.data.formats.format import Format, JsonRow, ReadOptions
from megatron_chimed.data.formats.row import (
    NOTHING,
    RowError,
    checked_text,
    conversation_of,
    has_texts,
    key_list,
    list_at,
    optional_text,
    text_at,
)

QUESTIONS = ("question", "Question", "题干", "题目", "问题", "stem", "query")
CHOICES = ("options", "option", "Options", "Option", "choices", "Choices", "选项", "choice")

COLUMNS = ("option_", "option", "Option", "choice_", "选项")
COLUMN_KEYS = {
    column + name: letter
    for column in COLUMNS
    for letter in LETTERS
    for name in letter + letter.lower()
}
FEWEST = 2  # choices of a question


def read_conversation(
    read_question: Callable[[JsonRow], ExamQuestion], row: JsonRow, options: ReadOptions
) -> Sequence[Conversation]:
    """The conversation of a row: the question, and its right choices as the answer.

    Raises:
        RowError: As of `read_question`.
    """
    item = read_question(row)
    kind = "单选题" if len(item.letters) == 1 else "多选题"
    about = f"关于{item.subject}的" if item.subject else ""
    listed = "\n".join(f"{letter}.{text}" for letter, text in item.choices.items())
    head = f"下面是一道{about}{kind}，请选择正确的答案选项。"
    right = "\n".join(f"{letter}.{item.choices[letter]}" for letter in item.letters)
    return (conversation_of(row, [Turn(f"{head}\n问题：{item.question}\n\n{listed}", right)]),)


def exam_format(
    *,
    name: str,
    recognise: Callable[[JsonRow], bool],
    read_question: Callable[[JsonRow], ExamQuestion],
    keys: frozenset[str],
    sample: JsonRow,
    one_of: tuple[tuple[str, ...], ...] = (),
) -> Format:
    """A format whose rows are multiple choice questions; arguments as of `Format`."""
    return Format(
        name=name,
        recognise=recognise,
        read=partial(read_conversation, read_question),
        read_question=read_question,
        keys=keys,
        sample=sample,
        one_of=one_of,
    )


def _recognise_columns(row: JsonRow) -> bool:
    return has_texts(row, "A", "B") and _column_keys(row) is not None


def _column_keys(row: JsonRow) -> tuple[str, str] | None:
    for keys in (("Question", "Answer"), ("question", "answer")):
        if has_texts(row, keys[0]) and keys[1] in row:
            return keys
    return None


def _question_of_columns(row: JsonRow) -> ExamQuestion:
    question, answer = _column_keys(row) or ("Question", "Answer")
    choices = {letter: row[letter] for letter in LETTERS if has_texts(row, letter) and row[letter]}
    letters = right_letters(row.get(answer), choices)
    return exam_question(text_at(row, question), choices, letters)


def _recognise_medqa(row: JsonRow) -> bool:
    return has_texts(row, "question", "answer_idx") and isinstance(row.get("options"), dict)


def _question_of_medqa(row: JsonRow) -> ExamQuestion:
    if not isinstance(row.get("options"), dict):
        raise RowError("'options' is not an object of letters and choices")
    choices = choices_of(row["options"], "options")
    return exam_question(text_at(row, "question"), choices, agreed_letters(row, choices))


def _recognise_cmexam(row: JsonRow) -> bool:
    return has_texts(row, "Question", "Options") and "Answer" in row


def _question_of_cmexam(row: JsonRow) -> ExamQuestion:
    choices = choices_of(text_at(row, "Options"), "Options")
    letters = agreed_letters(row, choices)
    return exam_question(text_at(row, "Question"), choices, letters)


def _recognise_choice(row: JsonRow) -> bool:
    return has_texts(row, "text") and isinstance(row.get("choice"), list) and "label" in row


def _question_of_choice(row: JsonRow) -> ExamQuestion:
    texts = [checked_text(text, "choice") for text in list_at(row, "choice")]
    label = row.get("label")
    if type(label) is not int or not 0 <= label < len(texts) or len(texts) > len(LETTERS):
        raise RowError(
            f"'label' {label!r} is not an index of 'choice', which has {len(texts)} entries"
        )
    choices = dict(zip(LETTERS, texts, strict=False))
    subject = optional_text(row, "type")
    return exam_question(text_at(row, "text"), choices, LETTERS[label], subject=subject)


def _first(row: JsonRow, keys: Sequence[str]) -> str | None:
    return next((key for key in keys if row.get(key) not in NOTHING), None)


def _choice_columns(row: JsonRow) -> dict[str, Any]:
    """The choices of a row with a key for each, such as `option_a`."""
    found = {COLUMN_KEYS[key]: value for key, value in row.items() if key in COLUMN_KEYS}
    return {letter: text for letter, text in found.items() if text not in NOTHING}


def _recognise_exam(row: JsonRow) -> bool:
    question, choices = _first(row, QUESTIONS), _first(row, CHOICES)
    if question is None or not isinstance(row[question], str):
        return False
    if choices is None and len(_choice_columns(row)) < FEWEST:
        return False
    if choices and isinstance(row[choices], str) and OPTION_LINE.match(row[choices]) is None:
        return False
    return any(key in row for key in (*ANSWERS, LABEL))


def _question_of_exam(row: JsonRow) -> ExamQuestion:
    key, columns = _first(row, CHOICES), _choice_columns(row)
    if key is None and not columns or key is not None and columns:
        what = "choices twice" if columns else "no choices"
        raise RowError(f"{what} (keys: {key_list(row)})")
    choices = choices_of(columns, "A") if key is None else choices_of(row[key], key)
    question = text_at(row, _first(row, QUESTIONS) or QUESTIONS[0])
    return exam_question(question, choices, agreed_letters(row, choices))


CMMLU = exam_format(
    name="cmmlu",
    recognise=_recognise_columns,
    read_question=_question_of_columns,
    keys=frozenset({"Question", "question", "Answer", "answer", *LETTERS, *EXPLANATIONS}),
    one_of=(("Question", "question"), ("Answer", "answer")),
    sample={
        "": "0",
        "Question": "壁胸膜的分部不包括",
        "A": "肋胸膜",
        "B": "肺胸膜",
        "C": "膈胸膜",
        "D": "胸膜顶",
        "Answer": "B",
    },
)

MEDQA = exam_format(
    name="medqa",
    recognise=_recognise_medqa,
    read_question=_question_of_medqa,
    keys=frozenset({"question", "options", *ANSWERS, LABEL, *EXPLANATIONS}),
    sample={
        "question": "维生素C缺乏引起",
        "options": {"A": "夜盲症", "B": "坏血病", "C": "脚气病", "D": "佝偻病"},
        "answer": "坏血病",
        "answer_idx": "B",
        "meta_info": "营养",
    },
)

CMEXAM = exam_format(
    name="cmexam",
    recognise=_recognise_cmexam,
    read_question=_question_of_cmexam,
    keys=frozenset({"Question", "Options", *ANSWERS, LABEL, *EXPLANATIONS}),
    sample={
        "Question": "属于补血药的是",
        "Options": "A 当归\nB 黄连\nC 麻黄\nD 大黄\nE 熟地黄",
        "Answer": "AE",
        "Explanation": "当归、熟地黄均能补血。",
    },
)

CHOICE = exam_format(
    name="choice",
    recognise=_recognise_choice,
    read_question=_question_of_choice,
    keys=frozenset({"text", "choice", "label", "type"}),
    sample={
        "type": "医学",
        "type_en": "medicine",
        "text": "成人正常体温（腋下）约为",
        "choice": ["35.0℃", "36.5℃", "38.0℃", "39.0℃"],
        "label": 1,
    },
)

EXAM = exam_format(
    name="exam",
    recognise=_recognise_exam,
    read_question=_question_of_exam,
    keys=frozenset({*QUESTIONS, *CHOICES, *COLUMN_KEYS, *ANSWERS, LABEL, *EXPLANATIONS}),
    one_of=(QUESTIONS, CHOICES),
    sample={
        "question": "维生素C缺乏引起",
        "options": [
            {"key": "A", "value": "夜盲症"},
            {"key": "B", "value": "坏血病"},
            {"key": "C", "value": "脚气病"},
        ],
        "answer": "B",
    },
)
