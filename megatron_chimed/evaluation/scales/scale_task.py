"""Attitude scales: what a model agrees with, and what of it is the way of asking.

Measures: `likelihood` takes the probabilities of the options, plain and PMI-corrected; `answers`
reads sampled answers. Every item is asked in every cell of orders, wordings and labels.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from megatron_chimed.errors import ConfigError
from megatron_chimed.evaluation.aggregates import share
from megatron_chimed.evaluation.figures import Figure, MeasuredItem
from megatron_chimed.evaluation.measures import Given, MeasureEntry
from megatron_chimed.evaluation.requests import Answer, LikelihoodRequest, Likelihoods, TaskPrompt
from megatron_chimed.evaluation.scales.scale_answers import SCALE_PROBLEMS, read_point
from megatron_chimed.evaluation.scales.scale_cells import (
    ORDERS,
    Order,
    ScaleCell,
    cells_of,
    options,
    presented,
    prompt_of,
)
from megatron_chimed.evaluation.scales.scale_figures import (
    ALWAYS_FIRST,
    RANDOM,
    CellAnswer,
    agreement,
    bias_figures,
    respondent,
    scale_figures,
    score,
    score_figures,
)
from megatron_chimed.evaluation.scales.scale_files import Labels, Scale, Wording, load_scale
from megatron_chimed.evaluation.tasks.answer_settings import AnswerSettings

Scoring = Literal["likelihood", "answers"]
PMI = ", PMI-corrected"
NEUTRAL = "without a statement"


@dataclass(frozen=True, kw_only=True)
class SampledAnswers(AnswerSettings):
    """How answers to a scale are drawn; each seed asks every cell once."""

    max_new_tokens: int = 64
    """Longest answer."""
    temperature: float = 1.0
    """0: always the most likely token."""
    num_seeds: int = 3
    """Answers to each cell."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        super().__post_init__()
        if self.num_seeds < 1:
            raise ConfigError(f"answers.num_seeds is {self.num_seeds}: set 1 or more.")
        if self.num_seeds > 1 and self.temperature == 0:
            raise ConfigError(
                f"answers.num_seeds is {self.num_seeds}, but at temperature 0 all answers are "
                "equal. Set num_seeds 1, or a higher temperature."
            )


@dataclass(frozen=True, kw_only=True)
class ScaleTask:
    """An attitude scale as it is put to a model."""

    name: str
    """Its name in the report."""
    kind: Literal["scale"] = "scale"
    """What sort of task it is."""
    title: str = ""
    """For the report; empty: that of the scale."""
    scale: str
    """A scale that comes along, or a YAML file."""
    scoring: tuple[Scoring, ...] = ("likelihood", "answers")
    """How the model answers; each is a measure of its own."""
    labels: tuple[Labels, ...] = ("letters", "numbers", "words")
    """What stands before the options; with words nothing does."""
    wordings: tuple[Wording, ...] = ("forward", "negated")
    """Whether statements are put as they are, and as their opposite."""
    style: Literal["chat", "text"] = "chat"
    """Whether prompts are in the model's template; both layouts are ours."""
    system: str = ""
    """System prompt; empty: the template's own."""
    answers: SampledAnswers = SampledAnswers()
    """How answers are drawn."""

    def __post_init__(self) -> None:
        """Checks what depends on each other."""
        for key in ("scoring", "labels", "wordings"):
            values = getattr(self, key)
            if not values or len(set(values)) != len(values):
                raise ConfigError(f"task {self.name}: {key} must list each once, one at least.")
        if self.system and self.style == "text":
            raise ConfigError(f"task {self.name}: system needs style chat.")

    def measures(self) -> list["ScaleMeasure"]:
        """One for each way of scoring.

        Raises:
            ConfigError: The scale's file is wrong, or an item has no negated wording.
        """
        scale = load_scale(self.scale, f"task {self.name}")
        if "negated" in self.wordings:
            for item in scale.items:
                if not item.negated:
                    raise ConfigError(
                        f"scale {scale.name}: item {item.id} has no negated wording. Add "
                        f"`negated`, or set wordings: [forward] in task {self.name}."
                    )
        return [ScaleMeasure(task=self, scale=scale, scoring=scoring) for scoring in self.scoring]


@dataclass(frozen=True, kw_only=True)
class ScaleMeasure:
    """A scale, answered in one way."""

    task: ScaleTask
    scale: Scale
    scoring: Scoring

    @property
    def name(self) -> str:
        """Of the task and the scoring."""
        return f"{self.task.name}.{self.scoring}"

    @property
    def title(self) -> str:
        """With the way of scoring and the layout."""
        task, scale = self.task, self.scale
        return (
            f"{task.title or scale.title or scale.name}, attitude scale, {self.scoring}, "
            f"{task.style} (our prompt)"
        )

    @property
    def main_score(self) -> str:
        """The expected score of a cell."""
        return "score"

    @functools.cached_property
    def cells(self) -> Sequence[ScaleCell]:
        """All cells of all items, in order."""
        draws = self.task.answers.num_seeds if self.scoring == "answers" else 1
        return cells_of(self.scale, self.task.labels, self.task.wordings, draws)

    @functools.cached_property
    def neutral(self) -> Sequence[tuple[Order, Labels]]:
        """Options that are asked without a statement, for their own probabilities."""
        if self.scoring == "answers":
            return ()
        return [(order, labels) for order in ORDERS for labels in self.task.labels]

    @property
    def entries(self) -> Sequence[MeasureEntry]:
        """The options without a statement, then all cells."""
        return self._entries

    @functools.cached_property
    def _entries(self) -> Sequence[MeasureEntry]:
        return [*map(self._neutral_entry, self.neutral), *map(self._entry, self.cells)]

    def judge(self, index: int, response: Given) -> tuple[dict[str, float], dict[str, object]]:
        """The expected score and agreement, and the probabilities of the scale's points."""
        if index < len(self.neutral):
            assert isinstance(response, Likelihoods), "what the entries ask"
            order, _ = self.neutral[index]
            return {}, {"log_probs": self._by_point(order, response.log_probs)}
        cell = self.cells[index - len(self.neutral)]
        details: dict[str, object] = {"statement": cell.statement, "reversed": cell.item.reversed}
        if isinstance(response, Answer):
            place, problem = read_point(
                response.text,
                () if cell.labels == "words" else options(self.scale, cell.order, cell.labels),
                options(self.scale, cell.order, "words"),
            )
            details["problem"] = problem
            scores = {name: float(problem == name) for name in SCALE_PROBLEMS}
            if place is None:
                return scores, details
            chosen = [float(number == place) for number in range(len(self.scale.points))]
            probabilities = self._by_point(cell.order, chosen)
        else:
            assert isinstance(response, Likelihoods), "what the entries ask"
            log_probs = self._by_point(cell.order, response.log_probs)
            details["log_probs"] = log_probs
            probabilities = _softmax(log_probs)
            if probabilities is None:
                return {"not_finite": 1.0}, details
            scores = {}
        answer = CellAnswer(cell=cell, probabilities=tuple(probabilities))
        details["probabilities"] = list(probabilities)
        scores |= {
            "score": score(self.scale, answer),
            "agreement": agreement(self.scale, answer),
        }
        return scores, details

    def figures(self, items: Sequence[MeasuredItem], seed: int) -> list[Figure]:
        """Scores, biases, and what could not be read."""
        answers = self._answers(items)
        found = scale_figures(self.scale, self.cells, answers, seed, "")
        if self.scoring == "likelihood":
            corrected = self._corrected(items)
            found += scale_figures(self.scale, self.cells, corrected, seed, PMI)
            asked = [item for item in items if item.dropped is None and item.group != NEUTRAL]
            lost = sum("not_finite" in item.scores for item in asked)
            metric = "options without probabilities"
            return [*found, share(metric, lost, len(asked), higher_is_better=False)]
        kept = [item for item in items if item.dropped is None]
        return found + [
            share(
                metric,
                round(sum(item.scores[problem] for item in kept)),
                len(kept),
                higher_is_better=False,
            )
            for metric, problem in zip(
                ("refusals", "off-scale answers", "unparsed answers"), SCALE_PROBLEMS, strict=True
            )
        ]

    def baselines(self) -> list[Figure]:
        """Random answers, and always the first option."""
        figures = []
        for name in (RANDOM, ALWAYS_FIRST):
            answers = respondent(self.scale, self.cells, name)
            found = [
                *score_figures(self.scale, answers, None, ""),
                *bias_figures(self.scale, answers, None, "")[:3],
            ]
            figures += [
                Figure(
                    metric=f"{figure.metric} of {name}",
                    value=figure.value,
                    num_used=figure.num_used,
                )
                for figure in found
                if not figure.group
            ]
        return figures

    def _neutral_entry(self, asked: tuple[Order, Labels]) -> MeasureEntry:
        order, labels = asked
        return MeasureEntry(
            id=f"{NEUTRAL}/{order}/{labels}",
            group=NEUTRAL,
            request=self._likelihoods(self.scale.neutral, order, labels),
        )

    def _entry(self, cell: ScaleCell) -> MeasureEntry:
        if self.scoring == "likelihood":
            request = self._likelihoods(cell.statement, cell.order, cell.labels)
        else:
            settings = self.task.answers
            request = dataclasses.replace(
                settings.request(self._prompt(cell.statement, cell.order, cell.labels)),
                seed=settings.seed + cell.draw,
            )
        return MeasureEntry(
            id=cell.id,
            group=cell.item.subscale,
            request=request,
            expected=(self.scale.values, cell.item.reversed, cell.wording),
        )

    def _likelihoods(self, statement: str, order: Order, labels: Labels) -> LikelihoodRequest:
        return LikelihoodRequest(
            prompt=self._prompt(statement, order, labels),
            continuations=options(self.scale, order, labels),
        )

    def _prompt(self, statement: str, order: Order, labels: Labels) -> TaskPrompt:
        is_chat = self.task.style == "chat"
        return prompt_of(
            self.scale, statement, order, labels, is_chat=is_chat, system=self.task.system
        )

    def _by_point(self, order: Order, values: Sequence[float]) -> list[float]:
        """Values of the options as presented, in the order of the scale's points."""
        places = presented(order, len(values))
        return [values[places[point]] for point in range(len(values))]

    def _answers(self, items: Sequence[MeasuredItem]) -> list[CellAnswer]:
        cells = {cell.id: cell for cell in self.cells}
        return [
            CellAnswer(cell=cells[item.id], probabilities=tuple(item.details["probabilities"]))
            for item in items
            if "probabilities" in item.details
        ]

    def _corrected(self, items: Sequence[MeasuredItem]) -> list[CellAnswer]:
        """Answers after the options' own log-probabilities are taken off."""
        found = {item.id: item.details.get("log_probs") for item in items}
        answers = []
        for cell in self.cells:
            own = found.get(f"{NEUTRAL}/{cell.order}/{cell.labels}")
            given = found.get(cell.id)
            if own is None or given is None or not all(map(math.isfinite, own)):
                continue
            probabilities = _softmax([value - base for value, base in zip(given, own, strict=True)])
            if probabilities is not None:
                answers.append(CellAnswer(cell=cell, probabilities=tuple(probabilities)))
        return answers


def _softmax(log_probs: Sequence[float]) -> list[float] | None:
    """Probabilities that sum to 1; None if none can be told."""
    values = np.asarray(log_probs, float)
    if np.isnan(values).any() or not np.isfinite(values.max()):
        return None
    shares = np.exp(values - values.max())
    return (shares / shares.sum()).tolist()
