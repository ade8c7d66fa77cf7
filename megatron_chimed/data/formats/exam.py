"""The choices and answers of exam rows, in the shapes that sets of many authors have.

Choices are an object, a list of texts, a list of objects (`key` and `value`), or lines of one text.
The answer is one letter or several, the text of a choice, both, or the index of a choice from 0.
Where a row gives its answer twice, both must name the same choices.
"""

import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron_chimed.data.formats.row import NOTHING, RowError, checked_text, key_list

LETTERS = "ABCDEFGHIJ"
# Where a choice starts within a line: its letter after white space, and a mark that no word has.
INLINE = re.compile(r"\s+(?=[(（\[]?[A-J](?:[)）\]]|[.．、:：)）])\s*\S)")
OPTION_LINE = re.compile(r"\s*[(（\[]?([A-J])[)）\]]?[\s.．、:：)）]\s*(.*)")
ANSWER_PREFIX = re.compile(r"^(?:(?:正确|参考|标准)?答案|选项?|ANSWER)[是为]?[:：\s]*")
SEPARATORS = re.compile(r"[\s,，、;；/|.。()（）\[\]【】和与]+")
ANSWERS = (
    *("answer_idx", "answer_index", "answer", "Answer", "答案", "正确答案", "correct_answer"),
    *("correct_option", "answer_letter", "answerKey", "answer_key"),
)
LABEL = "label"  # the answer if there is no other
EXPLANATIONS = ("Explanation", "explanation", "rationale", "analysis", "exp", "解析", "答案解析")
LABEL_KEYS = ("key", "label", "letter", "option", "id", "name")
TEXT_KEYS = ("value", "text", "content", "option_text", "description")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExamQuestion:
    """A multiple choice question with its answer."""

    question: str
    """Without its choices."""

    choices: Mapping[str, str]
    """The choices by letter, in order."""

    letters: str
    """The letters of the right choices, in the order of the row's answer."""

    subject: str = ""
    """What it is about, "" if the row does not say."""


def exam_question(
    question: str, choices: Mapping[str, str], letters: Any, *, subject: str = ""
) -> ExamQuestion:
    """A question whose answer was checked.

    Raises:
        RowError: There is no answer, or it is none of the choices.
    """
    right = right_letters(letters, choices)
    return ExamQuestion(question=question, choices=choices, letters=right, subject=subject)


def choices_of(value: Any, name: str) -> dict[str, str]:
    """The choices by letter, in order.

    Args:
        value: An object of letters and texts, a list of texts, a list of objects with a letter and
            a text, or a text with its choices in lines or in one line.
        name: Its key, for messages.

    Raises:
        RowError: It is none of these, or letters are missing or repeated.
    """
    if isinstance(value, str):
        return _choices_of_lines(value, name)
    if isinstance(value, dict) and {"label", "text"} == set(value):  # columns of two lists
        value = _choices_of_columns(value, name)
    if isinstance(value, dict):
        pairs = sorted((str(label), text) for label, text in value.items() if text is not None)
    elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        pairs = [_choice_of_object(item, name) for item in value]
    elif isinstance(value, list) and value:
        pairs = _choices_of_list([_as_text(text, name) for text in value])
    else:
        raise RowError(f"{name!r} has no choices")
    choices: dict[str, str] = {}
    for label, text in pairs:
        letter = folded(label).strip(".、:)( ")
        if letter not in LETTERS or not letter or letter in choices:
            raise RowError(f"{name!r} has a choice {label!r}; choices are A to {LETTERS[-1]}")
        choices[letter] = _as_text(text, name)
    # Sets with up to five choices leave the fifth empty.
    return {letter: text for letter, text in choices.items() if text.strip()}


def right_letters(answer: Any, choices: Mapping[str, str]) -> str:
    """The letters of the right choices, in the order of the answer.

    Args:
        answer: Letters, the text of a choice, a list of these, or an index from 0.
        choices: By letter.

    Raises:
        RowError: It names no choice, or there is none.
    """
    if isinstance(answer, list):
        found = [right_letters(part, choices) for part in answer]
        return _checked("".join(found), answer, choices)
    if isinstance(answer, bool) or not isinstance(answer, int | float | str | None):
        raise RowError(f"the answer is of type {type(answer).__name__}, not letters or a choice")
    if isinstance(answer, int | float) and not math.isnan(answer):
        return _indexed(answer, choices)
    text = str(answer or "").strip()
    if folded(text) in ("", "NAN", "NONE", "NULL"):
        raise RowError("no answer")
    by_text = [letter for letter, choice in choices.items() if choice.strip() == text]
    letters = SEPARATORS.sub("", ANSWER_PREFIX.sub("", folded(text)))
    is_letters = letters != "" and all(letter in LETTERS for letter in letters)
    if len(by_text) == 1 and not (is_letters and all(letter in choices for letter in letters)):
        return by_text[0]
    if is_letters:
        return _checked(letters, answer, choices)
    if match := OPTION_LINE.fullmatch(folded(text)):
        if folded(choices.get(match[1], "")).strip() == match[2].strip():
            return match[1]
    if letters.isdecimal() and not by_text:
        return _indexed(int(letters), choices)
    raise RowError(f"answer {text[:40]!r} is not one of the choices {', '.join(choices)}")


def folded(text: str) -> str:
    """Upper case, and full-width letters as ASCII."""
    return unicodedata.normalize("NFKC", text).strip().upper()


def _checked(letters: str, answer: Any, choices: Mapping[str, str]) -> str:
    wrong = [letter for letter in letters if letter not in choices]
    if wrong or not letters or len(set(letters)) != len(letters):
        shown = letters if isinstance(answer, str) else answer
        raise RowError(f"answer {shown!r} is not one of the choices {', '.join(choices)}")
    return letters


def _indexed(number: float, choices: Mapping[str, str]) -> str:
    letters = list(choices)
    if number != int(number) or not 0 <= number < len(letters):
        raise RowError(
            f"answer {number:g} is not an index of {len(letters)} choices, counted from 0"
        )
    letter = letters[int(number)]
    same = [other for other, text in choices.items() if text.strip() == f"{number:g}"]
    if same not in ([], [letter]):
        raise RowError(
            f"answer {number:g} is an index or the choice {same[0]}.{number:g}: write the letter"
        )
    return letter


def _choices_of_lines(value: str, name: str) -> dict[str, str]:
    choices: dict[str, str] = {}
    lines = value.strip().splitlines()
    if len(lines) == 1:
        lines = INLINE.split(lines[0])
    for line in lines:
        match = OPTION_LINE.fullmatch(line)
        if match is not None and match[1] not in choices:
            choices[match[1]] = match[2].strip()
        elif choices and line.strip():  # a choice may continue on the next line
            last = next(reversed(choices))
            choices[last] += "\n" + line.strip()
        elif line.strip():
            raise RowError(f"{name!r} does not start with a letter: {line[:20]!r}")
    if not choices:
        raise RowError(f"{name!r} has no choices")
    return choices


def _choices_of_columns(value: dict[str, Any], name: str) -> dict[str, Any]:
    labels, texts = value["label"], value["text"]
    if not isinstance(labels, list) or not isinstance(texts, list) or len(labels) != len(texts):
        raise RowError(f"{name!r} has not as many labels as texts")
    if len(set(map(str, labels))) != len(labels):
        raise RowError(f"{name!r} has equal labels")
    return dict(zip(map(str, labels), texts, strict=True))


def _choice_of_object(item: dict[str, Any], name: str) -> tuple[str, Any]:
    labels = [key for key in LABEL_KEYS if isinstance(item.get(key), str)]
    texts = [key for key in TEXT_KEYS if isinstance(item.get(key), str)]
    if labels and texts:
        return item[labels[0]], item[texts[0]]
    if len(item) == 1:  # {"A": "..."}
        return next(iter(item.items()))
    raise RowError(f"a choice of {name!r} has no letter and text (keys: {key_list(item)})")


def _choices_of_list(texts: list[str]) -> list[tuple[str, str]]:
    """Choices in order; letters that they start with are taken off if all have the right one."""
    if len(texts) > len(LETTERS):
        raise RowError(f"{len(texts)} choices, but there are {len(LETTERS)} letters")
    matches = [OPTION_LINE.fullmatch(text) for text in texts]
    labelled = [(match[1], match[2].strip()) for match in matches if match is not None]
    if [letter for letter, _ in labelled] == list(LETTERS[: len(texts)]):
        return labelled
    return list(zip(LETTERS, texts, strict=False))


def _as_text(value: Any, name: str) -> str:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if is_number else checked_text(value, name)


def agreed_letters(row: Mapping[str, Any], choices: Mapping[str, str]) -> str:
    """The letters that all answers of a row name.

    Raises:
        RowError: There is no answer, or two differ.
    """
    given = [key for key in ANSWERS if row.get(key) not in NOTHING]
    given = given or [key for key in (LABEL,) if row.get(key) not in NOTHING]
    if not given:
        raise RowError("no answer")
    texts = [key for key in given if isinstance(row[key], str | list)] or given
    letters = right_letters(row[texts[0]], choices)
    for key in given:
        if key in texts:
            agrees = set(right_letters(row[key], choices)) == set(letters)
        else:  # an index, which some count from 1
            place = list(choices).index(letters[0])
            agrees = len(letters) == 1 and row[key] in (place, place + 1)
        if not agrees:
            raise RowError(f"{texts[0]!r} and {key!r} name different choices")
    return letters
