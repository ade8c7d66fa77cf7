"""Questions whose answer is a number, a date or a duration, as those of MedCalc-Bench.

The prompt is ours. An answer counts within the limits of its row, else within a share of the right
value; dates and durations must be equal.
"""

import datetime
import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from megatron_chimed.data.formats.row import RowError, key_list
from megatron_chimed.errors import ConfigError, DataError
from megatron_chimed.evaluation.aggregates import groups_of, share_of, used
from megatron_chimed.evaluation.figures import Figure, MeasuredItem
from megatron_chimed.evaluation.measures import Given, MeasureEntry
from megatron_chimed.evaluation.requests import Answer, TaskPrompt
from megatron_chimed.evaluation.scores.numeric_answers import (
    TOLERANCE,
    extract_date,
    extract_number,
    extract_weeks_days,
    is_within,
)
from megatron_chimed.evaluation.tasks.answer_settings import AnswerSettings
from megatron_chimed.evaluation.tasks.task_rows import TaskRow, read_task_rows

INSTRUCTION = "{note}{question}\n请逐步计算，最后一行写“答案：”和结果。"
QUESTION_KEYS = ("Question", "question")
NOTE_KEYS = ("Patient Note", "note", "context")
ANSWER_KEYS = ("Ground Truth Answer", "answer")
LOW_KEYS, HIGH_KEYS = ("Lower Limit", "lower"), ("Upper Limit", "upper")
UNIT_KEYS = ("unit", "Unit")
GROUP_KEYS = ("Category", "category", "Calculator Name")
ID_KEYS = ("Row Number", "id")
_DATE = re.compile(r"(\d{1,2})/(\d{1,2})/(\d{4})")
_ISO = re.compile(r"(\d{4})-(\d{1,2})-(\d{1,2})")
_WEEKS = re.compile(r"\(?'?(\d+) weeks?'?,? *'?(\d+) days?'?\)?")

Right = float | datetime.date | tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class NumericItem:
    """A row of a test file."""

    id: str
    """File and line."""
    group: str
    """Its category."""
    note: str
    """What the question is about, such as a patient's note; "": nothing."""
    question: str
    right: Right
    """A number, a date, or weeks and days."""
    limits: tuple[float, float] | None
    """Lowest and highest number that counts; None: the task's tolerance decides."""
    unit: str


@dataclass(frozen=True, kw_only=True)
class NumericTask:
    """Questions with a number as answer."""

    name: str
    """Its name in the report."""
    kind: Literal["numeric"] = "numeric"
    """What sort of task it is."""
    title: str = ""
    """For the report; empty: the name."""
    source: str = ""
    """Where the questions come from, for the report."""
    data: tuple[str, ...]
    """Files, folders or patterns of the questions."""
    instruction: str = INSTRUCTION
    """How a question is put, with {note} and {question}; ours."""
    is_chat: bool = True
    """Whether questions are put in the model's chat template."""
    tolerance: float = TOLERANCE
    """Largest difference as a share of the right value, where a row has no limits."""
    month_first: bool = True
    """How dates that end with the year are read: 05/17/2024, else 17/05/2024."""
    answers: AnswerSettings = AnswerSettings(max_new_tokens=1024)
    """How answers are drawn."""
    limit: int = 0
    """Largest number of rows, the first ones; 0: all."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if not self.data:
            raise ConfigError(f"task {self.name}: data is empty. List the files of the questions.")
        if "{question}" not in self.instruction:
            raise ConfigError(f"task {self.name}: instruction has no {{question}} in it.")
        if not 0 <= self.tolerance < 1:
            raise ConfigError(
                f"task {self.name}: tolerance is {self.tolerance:g}: it is a share of the right "
                "value. Set 0 or more, less than 1."
            )
        if self.limit < 0:
            raise ConfigError(f"task {self.name}: limit is {self.limit}: set 0 or more.")

    def measures(self) -> list["NumericMeasure"]:
        """One measure.

        Raises:
            DataError: Files are damaged, or no row can be used.
        """
        items: list[NumericItem | MeasureEntry] = []
        for place in read_task_rows(self.data, QUESTION_KEYS[0]):
            try:
                items.append(_item(place, month_first=self.month_first))
            except RowError as error:
                items.append(MeasureEntry(id=place.id, group="", request=None, problem=str(error)))
        if not any(isinstance(item, NumericItem) for item in items):
            reasons = [item.problem for item in items if isinstance(item, MeasureEntry)]
            why = reasons[0] if reasons else "there are no rows"
            raise DataError(
                f"task {self.name}: no row of {', '.join(self.data)} can be used: {why}."
            )
        items = items[: self.limit] if self.limit else items
        return [NumericMeasure(task=self, items=tuple(items))]


@dataclass(frozen=True, kw_only=True)
class NumericMeasure:
    """A task's questions."""

    task: NumericTask
    items: tuple[NumericItem | MeasureEntry, ...]
    """Entries stand for rows that cannot be used."""

    @property
    def name(self) -> str:
        """Of the task."""
        return self.task.name

    @property
    def title(self) -> str:
        """With the tolerance."""
        task = self.task
        return f"{task.title or task.name}, numeric, within limits or {task.tolerance:.0%}"

    @property
    def main_score(self) -> str:
        """Whether the answer counts."""
        return "accuracy"

    @property
    def entries(self) -> Sequence[MeasureEntry]:
        """All questions."""
        return self._entries

    @functools.cached_property
    def _entries(self) -> Sequence[MeasureEntry]:
        return [
            item if isinstance(item, MeasureEntry) else self._entry(item) for item in self.items
        ]

    def judge(self, index: int, response: Given) -> tuple[dict[str, float], dict[str, object]]:
        """Whether the answer's value counts as right."""
        item = self.items[index]
        assert isinstance(response, Answer) and isinstance(item, NumericItem), "what is asked"
        if isinstance(item.right, datetime.date):
            found = extract_date(response.text, month_first=self.task.month_first)
            is_right = found.value == item.right
        elif isinstance(item.right, tuple):
            found = extract_weeks_days(response.text)
            is_right = found.value == item.right
        else:
            found = extract_number(response.text, item.unit)
            is_right = found.value is not None and is_within(
                found.value, item.right, relative=self.task.tolerance, limits=item.limits
            )
        details: dict[str, object] = {
            "right": str(item.right),
            "answer": None if found.value is None else str(found.value),
            "problem": found.problem,
            "rule": found.rule,
        }
        return {"accuracy": float(is_right), "unparsed": float(found.value is None)}, details

    def figures(self, items: Sequence[MeasuredItem], seed: int) -> list[Figure]:  # noqa: ARG002
        """Accuracy, of each category too, and the share of answers without a value."""
        kept = used(items)
        figures = [share_of("accuracy", kept, metric="accuracy", higher_is_better=True)]
        figures += [
            share_of("accuracy", of_group, metric="accuracy", group=group, higher_is_better=True)
            for group, of_group in groups_of(items).items()
        ]
        figures.append(share_of("unparsed", kept, metric="unparsed_rate", higher_is_better=False))
        return figures

    def baselines(self) -> list[Figure]:
        """The number that counts for most questions, whatever the question."""
        items = [i for i in self.items if isinstance(i, NumericItem) and isinstance(i.right, float)]
        if not items:
            return []
        values = sorted({item.right for item in items if isinstance(item.right, float)})
        best = max(sum(self._counts(value, item) for item in items) for value in values)
        metric = "accuracy of the best constant number"
        return [Figure(metric=metric, value=best / len(items), num_used=len(items))]

    def _counts(self, value: float, item: NumericItem) -> bool:
        assert isinstance(item.right, float), "selected by the caller"
        return is_within(value, item.right, relative=self.task.tolerance, limits=item.limits)

    def _entry(self, item: NumericItem) -> MeasureEntry:
        prompt = TaskPrompt(question=self._put(item), is_chat=self.task.is_chat)
        return MeasureEntry(
            id=item.id,
            group=item.group,
            request=self.task.answers.request(prompt),
            expected=(item.right, item.limits),
        )

    def _put(self, item: NumericItem) -> str:
        note = f"{item.note}\n\n" if item.note else ""
        parts = {"{note}": note, "{question}": item.question}
        return re.sub(r"\{(?:note|question)\}", lambda m: parts[m[0]], self.task.instruction)


def _item(place: TaskRow, *, month_first: bool) -> NumericItem:
    """The question of a row.

    Raises:
        RowError: There is none, or its answer is no number, date or duration.
    """
    if isinstance(place.row, RowError):
        raise place.row
    row = place.row
    question = _value(row, QUESTION_KEYS)
    if not isinstance(question, str) or not question.strip():
        raise RowError(f"no question (keys: {key_list(row)})")
    note = _value(row, NOTE_KEYS)
    right = _right(_value(row, ANSWER_KEYS), month_first=month_first)
    low, high = (_number(_value(row, keys)) for keys in (LOW_KEYS, HIGH_KEYS))
    limits = None
    if low is not None and high is not None and isinstance(right, float):
        limits = low, high
        if not low <= right <= high:
            raise RowError(f"the answer {right:g} is outside its limits {low:g} to {high:g}")
    return NumericItem(
        id=place.id,
        group=str(_value(row, GROUP_KEYS) or place.stem),
        note=note.strip() if isinstance(note, str) else "",
        question=question.strip(),
        right=right,
        limits=limits,
        unit=str(_value(row, UNIT_KEYS) or ""),
    )


def _value(row: dict[str, Any], keys: Sequence[str]) -> Any:
    return next((row[key] for key in keys if row.get(key) not in (None, "")), None)


def _right(value: Any, *, month_first: bool) -> Right:
    number = _number(value)
    if number is not None:
        return number
    text = str(value or "").strip()
    if match := _WEEKS.fullmatch(text):
        return int(match[1]), int(match[2])
    try:
        if match := _DATE.fullmatch(text):
            first, second, year = map(int, match.groups())
            month, day = (first, second) if month_first else (second, first)
            return datetime.date(year, month, day)
        if match := _ISO.fullmatch(text):
            return datetime.date(*map(int, match.groups()))
    except ValueError:
        pass
    raise RowError(f"answer {text[:40]!r} is no number, date or duration")


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
