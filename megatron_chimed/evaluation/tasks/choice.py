"""Multiple choice questions, by log-likelihood or by generation.

Measures: `letters` compares the log-probabilities of the choices' letters, `texts` those of the
choices' texts, `generation` reads the letter from the model's own answer.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from megatron_chimed.data.formats.exam import ExamQuestion
from megatron_chimed.errors import ConfigError, DataError
from megatron_chimed.evaluation.figures import Figure, Interval, MeasuredItem
from megatron_chimed.evaluation.measures import Given, MeasureEntry
from megatron_chimed.evaluation.requests import (
    Answer,
    AnswerRequest,
    LikelihoodRequest,
    Likelihoods,
)
from megatron_chimed.evaluation.scores.answers import extract_choice
from megatron_chimed.evaluation.tasks.choice_questions import ChoiceItem, read_questions
from megatron_chimed.evaluation.tasks.choice_styles import STYLES, ChoiceStyle
from megatron_chimed.observe.intervals import wilson_interval

Scoring = Literal["letters", "texts", "generation"]


@dataclass(frozen=True, kw_only=True)
class ChoiceTask:
    """A set of multiple choice questions."""

    name: str
    """Its name in the report."""
    kind: Literal["choice"] = "choice"
    """What sort of task it is."""
    title: str = ""
    """For the report; empty: the name."""
    source: str = ""
    """Where the questions come from, for the report."""
    data: tuple[str, ...]
    """Files, folders or patterns of the questions."""
    shots: tuple[str, ...] = ()
    """Files of solved questions that precede each question; those of its own group, else all."""
    num_shots: int = 0
    """Number of solved questions before each, in file order."""
    style: Literal["lm_eval", "opencompass", "papers", "chat"] = "lm_eval"
    """The layout of prompts; each is that of a known harness or paper, `chat` is ours."""
    scoring: tuple[Scoring, ...] = ("letters",)
    """How the model answers; each is a measure of its own."""
    descriptions: dict[str, str] = field(default_factory=dict)
    """Text before the questions by style, with {subject}."""
    subjects: dict[str, str] = field(default_factory=dict)
    """Words for {subject} by group; else what the row says, else 医学."""
    group_key: str | None = None
    """Key of a row whose value is its group, over which macro averages go; null: its file."""
    limit: int = 0
    """Largest number of questions of each group, the first ones; 0: all."""
    max_new_tokens: int = 256
    """Longest generated answer."""

    def __post_init__(self) -> None:
        """Checks what depends on each other."""
        if not self.data:
            raise ConfigError(f"task {self.name}: data is empty. List the files of the questions.")
        if self.num_shots and not self.shots:
            raise ConfigError(
                f"task {self.name}: num_shots is {self.num_shots}, but shots lists no files."
            )
        for key, least in (("num_shots", 0), ("limit", 0), ("max_new_tokens", 1)):
            if getattr(self, key) < least:
                raise ConfigError(
                    f"task {self.name}: {key} is {getattr(self, key)}: set {least} or more."
                )
        if not self.scoring or len(set(self.scoring)) != len(self.scoring):
            raise ConfigError(f"task {self.name}: scoring must list each way once, one at least.")
        if unknown := [style for style in self.descriptions if style not in STYLES]:
            raise ConfigError(
                f"task {self.name}: descriptions has {unknown[0]!r}; styles are "
                f"{', '.join(STYLES)}."
            )

    def measures(self) -> list["ChoiceMeasure"]:
        """One for each way of scoring.

        Raises:
            DataError: Files are damaged, or there are too few shots.
        """
        items = _limited(self._read(self.data), self.limit)
        shots = self._shots()
        return [
            ChoiceMeasure(task=self, scoring=scoring, items=tuple(items), shots=shots)
            for scoring in self.scoring
        ]

    def _read(self, names: Sequence[str]) -> list[ChoiceItem]:
        return read_questions(names, group_key=self.group_key, subjects=self.subjects)

    def _shots(self) -> Mapping[str, Sequence[ExamQuestion]]:
        """The solved questions by group; under "" those of all groups."""
        shots: dict[str, list[ExamQuestion]] = {}
        if not self.num_shots:
            return shots
        for item in self._read(self.shots):
            if item.question is not None:
                shots.setdefault(item.group, []).append(item.question)
                shots.setdefault("", []).append(item.question)
        for group, found in shots.items():
            if len(found) < self.num_shots:
                raise DataError(
                    f"task {self.name}: {self.num_shots} shots are asked for, but "
                    f"{', '.join(self.shots)} has {len(found)} questions"
                    f"{f' of {group}' if group else ''}. Lower num_shots, or add some."
                )
        return {group: found[: self.num_shots] for group, found in shots.items()}


@dataclass(frozen=True, kw_only=True)
class ChoiceMeasure:
    """A task's questions, scored in one way."""

    task: ChoiceTask
    scoring: Scoring
    items: tuple[ChoiceItem, ...]
    shots: Mapping[str, Sequence[ExamQuestion]]

    @property
    def name(self) -> str:
        """Of the task and the scoring."""
        return f"{self.task.name}.{self.scoring}"

    @property
    def title(self) -> str:
        """With the way of scoring and the number of shots."""
        task = self.task
        return f"{task.title or task.name}, {self.scoring}, {task.num_shots}-shot, {task.style}"

    @property
    def main_score(self) -> str:
        """Whether the answer is right."""
        return "accuracy"

    @property
    def style(self) -> ChoiceStyle:
        """The layout of prompts."""
        return STYLES[self.task.style]

    @property
    def entries(self) -> Sequence[MeasureEntry]:
        """All questions."""
        return self._entries

    @functools.cached_property
    def _entries(self) -> Sequence[MeasureEntry]:
        return [self._entry(item) for item in self.items]

    def judge(self, index: int, response: Given) -> tuple[dict[str, float], dict[str, object]]:
        """Whether the answer is right: letters in any order, all of them and no other."""
        question = self._question(index)
        details: dict[str, object] = {"right": question.letters, "choices": dict(question.choices)}
        if isinstance(response, Answer):
            answer = extract_choice(
                response.text, question.choices, multiple=len(question.letters) > 1
            )
            details |= {"answer": answer.letters, "problem": answer.problem}
            is_right = set(answer.letters) == set(question.letters)
            return {"accuracy": float(is_right), "unparsed": float(not answer.letters)}, details
        assert isinstance(response, Likelihoods), "what the entries ask"
        letters = list(question.choices)
        scores = {"accuracy": response.log_probs}
        if self.scoring == "texts":
            lengths = [len(text) for text in question.choices.values()]
            scores["accuracy_per_character"] = tuple(
                value / length for value, length in zip(response.log_probs, lengths, strict=True)
            )
        found: dict[str, float] = {}
        for name, values in scores.items():
            best = letters[values.index(max(values))]  # of equal ones the first, as lm-eval does
            found[name] = float(best == question.letters)
            details["answer" if name == "accuracy" else name] = best
        found["unequal_lengths"] = float(len(set(response.num_tokens)) > 1)
        return found, details

    def figures(self, items: Sequence[MeasuredItem], seed: int) -> list[Figure]:
        """Accuracy over questions (micro), over groups (macro), and of each group."""
        used = [item for item in items if item.dropped is None]
        names = ["accuracy"]
        if self.scoring == "texts":
            names.append("accuracy_per_character")
        figures: list[Figure] = []
        groups = list(dict.fromkeys(item.group for item in items))
        for name in names:
            figures.append(_proportion(f"{name}", used, name))
            if len(groups) > 1:
                of_groups = [
                    _proportion(name, [item for item in used if item.group == group], name, group)
                    for group in groups
                ]
                figures += [_macro(name, of_groups), *of_groups]
        if self.scoring == "generation":
            figures.append(_proportion("unparsed_rate", used, "unparsed", is_better=False))
        return figures

    def baselines(self) -> list[Figure]:
        """Random letters, and always the first choice."""
        questions = [item.question for item in self.items if item.question is not None]
        chance = sum(_chance(question) for question in questions) / len(questions)
        first = sum(q.letters == next(iter(q.choices)) for q in questions) / len(questions)
        return [
            Figure(metric="accuracy of random answers", value=chance, num_used=len(questions)),
            Figure(metric="accuracy of always A", value=first, num_used=len(questions)),
        ]

    def _question(self, index: int) -> ExamQuestion:
        question = self.items[index].question
        assert question is not None, "an item without a question is not asked"
        return question

    def _entry(self, item: ChoiceItem) -> MeasureEntry:
        question, problem = item.question, item.problem
        if question is not None and self.scoring != "generation" and len(question.letters) > 1:
            problem = "several right choices, which only generation can answer"
        if question is None or problem is not None:
            return MeasureEntry(id=item.id, group=item.group, request=None, problem=problem)
        is_text = self.scoring == "texts"
        prompt = self.style.prompt(
            question,
            self.shots.get(item.group, self.shots.get("", ())),
            self._description(item),
            answers_text=is_text,
        )
        if self.scoring == "generation":
            request = AnswerRequest(
                prompt=prompt,
                max_new_tokens=self.task.max_new_tokens,
                stop_strings=() if prompt.is_chat else ("\n\n",),
            )
        else:
            continuations = self.style.continuations(question, answers_text=is_text)
            request = LikelihoodRequest(prompt=prompt, continuations=continuations)
        return MeasureEntry(
            id=item.id, group=item.group, request=request, expected=question.letters
        )

    def _description(self, item: ChoiceItem) -> str:
        text = self.task.descriptions.get(self.task.style, self.style.default_description)
        return text.replace("{subject}", item.subject or "医学")


def _limited(items: Sequence[ChoiceItem], limit: int) -> list[ChoiceItem]:
    counts: dict[str, int] = {}
    kept = []
    for item in items:
        counts[item.group] = counts.get(item.group, 0) + 1
        if not limit or counts[item.group] <= limit:
            kept.append(item)
    return kept


def _chance(question: ExamQuestion) -> float:
    """Probability of a uniformly random answer: of one letter, or of any set of letters."""
    n = len(question.choices)
    return 1 / n if len(question.letters) == 1 else 1 / (2**n - 1)


def _proportion(
    metric: str, items: Sequence[MeasuredItem], score: str, group: str = "", is_better: bool = True
) -> Figure:
    n = len(items)
    if not n:
        return Figure(metric=metric, value=None, num_used=0, group=group)
    successes = round(sum(item.scores[score] for item in items))
    low, high = wilson_interval(successes, n)
    return Figure(
        metric=metric,
        value=successes / n,
        num_used=n,
        group=group,
        interval=Interval(low=low, high=high, method="Wilson"),
        higher_is_better=is_better,
    )


def _macro(name: str, groups: Sequence[Figure]) -> Figure:
    values = [figure.value for figure in groups if figure.value is not None]
    return Figure(
        metric=f"{name} (mean of groups)",
        value=sum(values) / len(values) if values else None,
        num_used=sum(figure.num_used for figure in groups),
        higher_is_better=True,
    )
