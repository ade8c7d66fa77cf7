"""MedMCQA: four choices in columns, and the number of the right one.

The number counts from 0 in https://huggingface.co/datasets/openlifescienceai/medmcqa, and from 1 in
the files of https://github.com/medmcqa/medmcqa. A row with 1, 2 or 3 does not say which of the two
it is; over the first rows of a file, the 0 or the 4 does.
"""

from collections.abc import Callable

from megatron_chimed.data.formats.choice import exam_format
from megatron_chimed.data.formats.exam import ExamQuestion, exam_question
from megatron_chimed.data.formats.format import JsonRow
from megatron_chimed.data.formats.row import RowError, has_texts, text_at

CHOICE_KEYS = {"A": "opa", "B": "opb", "C": "opc", "D": "opd"}
KEYS = frozenset({"question", *CHOICE_KEYS.values(), "cop", "choice_type", "exp"})
NO_ANSWER = -1  # of the rows whose answers are hidden


def _number(row: JsonRow) -> int | None:
    """The number of the right choice as written; tables hold it as a text."""
    value = row.get("cop")
    if isinstance(value, str) and value.strip().removeprefix("-").isdecimal():
        return int(value)
    return value if type(value) is int else None


def _recogniser(first: int) -> Callable[[JsonRow], bool]:
    def recognise(row: JsonRow) -> bool:
        if not has_texts(row, "question", *CHOICE_KEYS.values()) or "cop" not in row:
            return False
        return _number(row) in (None, NO_ANSWER, *range(first, first + len(CHOICE_KEYS)))

    return recognise


def _reader(first: int) -> Callable[[JsonRow], ExamQuestion]:
    def read(row: JsonRow) -> ExamQuestion:
        choices = {letter: text_at(row, key) for letter, key in CHOICE_KEYS.items()}
        number = _number(row)
        if number == NO_ANSWER or row.get("cop") in (None, ""):
            raise RowError("no answer")
        if number is None or not first <= number < first + len(choices):
            raise RowError(
                f"'cop' is {row.get('cop')!r}, not a number from {first} to "
                f"{first + len(choices) - 1}: see --format medmcqa and medmcqa_from_1"
            )
        letter = list(choices)[number - first]
        return exam_question(text_at(row, "question"), choices, letter)

    return read


def _sample(cop: int) -> JsonRow:
    return {
        "id": "e9ad821a",
        "question": "Which vitamin is made in the skin?",
        "opa": "Vitamin A",
        "opb": "Vitamin B12",
        "opc": "Vitamin C",
        "opd": "Vitamin D",
        "cop": cop,
        "choice_type": "single",
        "exp": "Sunlight turns 7-dehydrocholesterol into vitamin D3.",
        "subject_name": "Biochemistry",
        "topic_name": "Vitamins",
    }


MEDMCQA = exam_format(
    name="medmcqa",
    recognise=_recogniser(first=0),
    read_question=_reader(first=0),
    keys=KEYS,
    sample=_sample(3),
)

MEDMCQA_FROM_1 = exam_format(
    name="medmcqa_from_1",
    recognise=_recogniser(first=1),
    read_question=_reader(first=1),
    keys=KEYS,
    sample=_sample(4),
)
