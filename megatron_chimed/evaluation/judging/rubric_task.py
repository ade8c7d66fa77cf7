"""Prompts with rubrics: criteria with points that a judge grades, as in HealthBench."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from megatron_chimed.data.formats.row import RowError
from megatron_chimed.errors import ConfigError, DataError
from megatron_chimed.evaluation.aggregates import mean_of, share_of, used
from megatron_chimed.evaluation.figures import Figure, MeasuredItem
from megatron_chimed.evaluation.measures import Given, MeasureEntry
from megatron_chimed.evaluation.requests import Answer, TaskPrompt
from megatron_chimed.evaluation.scores.answer_text import without_reasoning
from megatron_chimed.evaluation.tasks.answer_settings import AnswerSettings
from megatron_chimed.evaluation.tasks.task_rows import TaskRow, read_task_rows

_MOST_POINTS = 1e6  # HealthBench has 10; NaN and infinite ones are beyond


@dataclass(frozen=True, kw_only=True)
class RubricTask:
    """Prompts with rubrics; what they score is decided by the configuration's judges."""

    name: str
    """Its name in the report."""
    kind: Literal["rubric"] = "rubric"
    """What sort of task it is."""
    title: str = ""
    """For the report; empty: the name."""
    source: str = ""
    """Where the prompts come from, for the report."""
    data: tuple[str, ...]
    """Files, folders or patterns of rows with `prompt` (a text, or messages with role and content),
    `rubrics` (criterion, points, tags) and, if wanted, `example_tags`."""
    threshold: float = 0.5
    """Score that an answer must reach, beside the mean."""
    system: str = ""
    """System prompt; empty: the row's, or the template's own."""
    answers: AnswerSettings = AnswerSettings()
    """How answers are drawn."""
    limit: int = 0
    """Largest number of rows, the first ones; 0: all."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if not self.data:
            raise ConfigError(f"task {self.name}: data is empty. List the files of the prompts.")
        if self.limit < 0:
            raise ConfigError(f"task {self.name}: limit is {self.limit}: set 0 or more.")
        if not 0 < self.threshold <= 1:
            raise ConfigError(
                f"task {self.name}: threshold is {self.threshold:g}: set more than 0, at most 1."
            )

    def measures(self) -> list["RubricMeasure"]:
        """One measure.

        Raises:
            DataError: Files are damaged, or no row can be used.
        """
        rows = list(read_task_rows(self.data))
        items = tuple(_item(row) for row in (rows[: self.limit] if self.limit else rows))
        if not any(item.problem is None for item in items):
            first = items[0].problem if items else "there is none"
            raise DataError(
                f"task {self.name}: no row of {', '.join(self.data)} can be used: {first}. A row "
                "needs prompt and rubrics with criterion and points."
            )
        return [RubricMeasure(task=self, items=items)]


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """One line of a rubric."""

    text: str
    points: float
    tags: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RubricItem:
    """A prompt with its rubric."""

    id: str
    prompt: TaskPrompt = TaskPrompt(question="", is_chat=True)
    criteria: tuple[Criterion, ...] = ()
    tags: tuple[str, ...] = ()
    problem: str | None = None
    """Why the row cannot be used."""


@dataclass(frozen=True, kw_only=True)
class RubricMeasure:
    """A task's prompts; before a judge has graded the answers only their length is known."""

    task: RubricTask
    items: tuple[RubricItem, ...]

    @property
    def name(self) -> str:
        """Of the task."""
        return self.task.name

    @property
    def title(self) -> str:
        """With the threshold."""
        return f"{self.task.title or self.task.name}, rubric, threshold {self.task.threshold:g}"

    @property
    def main_score(self) -> str:
        """The length: the rubric's score is the judges'."""
        return "length"

    @property
    def entries(self) -> Sequence[MeasureEntry]:
        """All rows."""
        return self._entries

    @functools.cached_property
    def _entries(self) -> Sequence[MeasureEntry]:
        return [self._entry(item) for item in self.items]

    def judge(self, index: int, response: Given) -> tuple[dict[str, float], dict[str, object]]:  # noqa: ARG002
        """The answer's length in characters, and whether it is empty."""
        assert isinstance(response, Answer), "what the entries ask"
        text = without_reasoning(response.text).strip()
        return {"length": float(len(text)), "empty": float(not text)}, {}

    def figures(self, items: Sequence[MeasuredItem], seed: int) -> list[Figure]:
        """Length of answers and the share of empty ones."""
        kept = used(items)
        return [
            mean_of("length", kept, metric="length", seed=seed, higher_is_better=None),
            share_of("empty", kept, metric="empty answers", higher_is_better=False),
        ]

    def baselines(self) -> list[Figure]:
        """None: a rubric has no answer without knowledge."""
        return []

    def _entry(self, item: RubricItem) -> MeasureEntry:
        if item.problem is not None:
            return MeasureEntry(id=item.id, group="", request=None, problem=item.problem)
        request = self.task.answers.request(_with_system(item.prompt, self.task.system))
        return MeasureEntry(id=item.id, group="", request=request)


def _with_system(prompt: TaskPrompt, system: str) -> TaskPrompt:
    return TaskPrompt(
        question=prompt.question,
        history=prompt.history,
        is_chat=True,
        system=system or prompt.system,
    )


def _item(row: TaskRow) -> RubricItem:
    if isinstance(row.row, RowError):
        return RubricItem(id=row.id, problem=str(row.row))
    try:
        return RubricItem(
            id=row.id,
            prompt=_prompt(row.row.get("prompt")),
            criteria=_criteria(row.row.get("rubrics")),
            tags=_tags(row.row.get("example_tags")),
        )
    except RowError as error:
        return RubricItem(id=row.id, problem=str(error))


def _prompt(value: Any) -> TaskPrompt:
    messages = [{"role": "user", "content": value}] if isinstance(value, str) else value
    if not isinstance(messages, list) or not messages:
        raise RowError("no prompt")
    roles, texts = [], []
    for message in messages:
        text = message.get("content") if isinstance(message, Mapping) else None
        if not isinstance(text, str) or not text.strip():
            raise RowError("a message of the prompt without content")
        roles.append(message.get("role"))
        texts.append(text)
    system = texts.pop(0) if roles[0] == "system" else ""
    roles = roles[1:] if system else roles
    if not roles or roles != ["user" if i % 2 == 0 else "assistant" for i in range(len(roles))]:
        raise RowError("roles of the prompt do not alternate, beginning with the user")
    if len(roles) % 2 == 0:
        raise RowError("the prompt does not end with the user")
    history = tuple(zip(texts[0:-1:2], texts[1::2], strict=True))
    return TaskPrompt(question=texts[-1], history=history, is_chat=True, system=system)


def _criteria(value: Any) -> tuple[Criterion, ...]:
    if not isinstance(value, list) or not value:
        raise RowError("no rubrics")
    found = []
    for one in value:
        text = one.get("criterion") if isinstance(one, Mapping) else None
        if not isinstance(text, str) or not text.strip():
            raise RowError("a rubric without a criterion")
        points = one.get("points")
        if (
            not isinstance(points, (int, float))
            or isinstance(points, bool)
            or not 0 < abs(points) <= _MOST_POINTS
        ):
            raise RowError("a criterion whose points are no number other than 0")
        found.append(Criterion(text=text, points=float(points), tags=_tags(one.get("tags"))))
    return tuple(found)


def _tags(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(tag, str) for tag in value):
        raise RowError("tags that are no list of texts")
    return tuple(value)
