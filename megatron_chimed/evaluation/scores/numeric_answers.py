"""Reads the final number, date or duration of an answer to a question of medical calculation."""

import datetime
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from megatron_chimed.evaluation.scores.answer_text import Problem, final_text, is_refusal

Value = TypeVar("Value")

TOLERANCE = 0.05
"""MedCalc-Bench accepts what is within 5 % of the right value."""
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_SUPERSCRIPT_RUN = re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")
# No digit of a word or an exponent, such as CO2, HbA1c, m^2. A sign counts after a space or a cue.
_NUMBER = re.compile(
    r"(?<![A-Za-z0-9_.^])(?:(?<![0-9)%\]年月])[-−–])?"
    r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?(?!\d|\.\d)"
    r"(?:\s*(?:×|x|X|\*|\\times)\s*10\s*\^\s*\{?(?P<power>-?\d+)\}?)?"
)
_RANGE = re.compile(r"\s*(?:[-~–—至到]|to)\s*(?=\d)")
_WRAPPED = re.compile(
    r"\\boxed\s*\{|<answer>|[\"'](?:answer|答案|result|结果|value)[\"']\s*:\s*", re.IGNORECASE
)
_CUE = re.compile(
    r"(?:最终)?(?:答案|结果|得分|评分|总分)\s*(?:应该|应|大约|约)*(?:是|为|等于|[:=≈])+\s*(?:大约|约|≈)*"
    r"|(?:因此|所以|故|综上)[^。\n]{0,30}?(?:是|为|约|等于|[:=≈])\s*(?:大约|约|≈)*"
    r"|answer(?: is|:)\s*",
    re.IGNORECASE,
)
_ISO_DATE = re.compile(
    r"(?<!\d)(\d{4})\s*(?:年|-|/|\.)\s*(\d{1,2})\s*(?:月|-|/|\.)\s*(\d{1,2})(?!\d)"
)
_AMERICAN_DATE = re.compile(r"(?<!\d)(\d{1,2})[/-](\d{1,2})[/-](\d{4})(?!\d)")
_WEEKS = re.compile(
    r"(\d+)\s*(?:周|weeks?|w)\s*(?:零|,|and|又|\+)*\s*(?:(\d+)\s*(?:天|日|days?|d))?"
    r"|(\d+)\s*\+\s*(\d+)\s*(?:周|weeks?)",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class ReadValue(Generic[Value]):
    """The value that an answer ends with."""

    value: Value | None
    """None with a problem."""
    problem: Problem | None
    """Why there is none; `several` for a range."""
    rule: str
    """Where it was: `wrapped`, `stated` after a cue, or `last` in the text."""


def extract_number(answer: str, unit: str = "") -> ReadValue[float]:
    """The final number of an answer.

    Args:
        answer: What the model wrote.
        unit: Unit of the right value; of the numbers in one place, the last one that it follows is
            taken. Values are not converted.
    """
    unit = _readable(unit).replace(" ", "")

    def read(text: str) -> float | Problem | None:
        found = list(_NUMBER.finditer(text))
        with_unit = [one for one in found if unit and _follows(text, one.end(), unit)]
        if not found:
            return None
        chosen = (with_unit or found)[-1]
        before = found[found.index(chosen) - 1] if found.index(chosen) else None
        if before and (joint := _RANGE.match(text, before.end())):
            if joint.end() == chosen.start() or joint.end() == chosen.start() + 1:
                return "several"
        return _value(chosen)

    return _extract(answer, read)


def extract_date(answer: str, *, month_first: bool = True) -> ReadValue[datetime.date]:
    """The final date: 2024-05-17, 2024年5月17日, or 05/17/2024.

    Args:
        answer: What the model wrote.
        month_first: How a date that ends with the year is read.
    """

    def read(text: str) -> datetime.date | None:
        found = [(one.start(), one.groups()) for one in _ISO_DATE.finditer(text)]
        for one in _AMERICAN_DATE.finditer(text):
            first, second, year = one.groups()
            found.append(
                (one.start(), (year, first, second) if month_first else (year, second, first))
            )
        for _, parts in sorted(found, reverse=True):
            year, month, day = map(int, parts)
            try:
                return datetime.date(year, month, day)
            except ValueError:  # 2024-13-40 is no date
                continue
        return None

    return _extract(answer, read)


def extract_weeks_days(answer: str) -> ReadValue[tuple[int, int]]:
    """The final gestational age as weeks and days: 12周3天, 12+3周, 12 weeks and 3 days."""

    def read(text: str) -> tuple[int, int] | None:
        found = [one.groups() for one in _WEEKS.finditer(text)]
        if not found:
            return None
        weeks, days, short_weeks, short_days = found[-1]
        return int(weeks or short_weeks), int(days or short_days or 0)

    return _extract(answer, read)


def is_within(
    value: float,
    right: float,
    *,
    relative: float = TOLERANCE,
    limits: tuple[float, float] | None = None,
) -> bool:
    """Whether a value counts as right.

    Args:
        value: From an answer.
        right: The right value.
        relative: Largest difference as a share of the right value; 0: equal but for rounding.
        limits: Lowest and highest right value; replaces `relative`.
    """
    if limits is not None:
        return limits[0] <= value <= limits[1]
    return math.isclose(value, right, rel_tol=0, abs_tol=max(relative, 1e-9) * abs(right) + 1e-12)


def _extract(answer: str, read: Callable[[str], Value | Problem | None]) -> ReadValue[Value]:
    text, problem = final_text(_readable(answer))
    if problem:
        return ReadValue(value=None, problem=problem, rule="none")
    wrapped = [text[one.end() : one.end() + 100] for one in _WRAPPED.finditer(text)]
    wrapped = [re.split(r"\}(?!\d)|</answer>|[\"\n]", one.lstrip("\" '"))[0] for one in wrapped]
    stated = [
        re.split(r"[。;\n!]|\.\s|,(?!\d)", text[one.end() :])[0] for one in _CUE.finditer(text)
    ]
    for rule, places in (("wrapped", wrapped), ("stated", stated), ("last", [text])):
        for place in reversed(places):
            value = read(place)
            if value == "several":
                return ReadValue(value=None, problem="several", rule=rule)
            if value is not None and not isinstance(value, str):
                return ReadValue(value=value, problem=None, rule=rule)
    problem = "refusal" if is_refusal(text) else "unparsed"
    return ReadValue(value=None, problem=problem, rule="none")


def _readable(text: str) -> str:
    """Exponents with a ^, which NFKC would drop: 10⁹ is not 109."""
    return _SUPERSCRIPT_RUN.sub(lambda one: "^" + one.group().translate(_SUPERSCRIPTS), text)


def _value(match: re.Match[str]) -> float:
    digits = re.split(r"\s*(?:×|x|X|\*|\\times)", match.group())[0]
    power = match["power"]
    return float(digits.replace(",", "").replace("−", "-").replace("–", "-")) * (
        10.0 ** int(power) if power else 1.0
    )


def _follows(text: str, at: int, unit: str) -> bool:
    rest = re.sub(r"[\s{}\\]|text", "", text[at : at + 4 * len(unit) + 8])
    return rest.casefold().startswith(unit.casefold())
