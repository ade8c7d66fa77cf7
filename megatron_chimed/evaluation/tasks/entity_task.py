"""Named entities in medical texts, as a model lists them in its answer.

The papers publish no prompt for this; the one here is ours. Scores of answers without places are
no match for those of supervised systems, which give offsets: compare within this table only.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from megatron_chimed.errors import ConfigError, DataError
from megatron_chimed.evaluation.aggregates import BOOTSTRAP, ratio_interval, share, used
from megatron_chimed.evaluation.figures import Figure, Interval, MeasuredItem
from megatron_chimed.evaluation.measures import Given, MeasureEntry
from megatron_chimed.evaluation.requests import Answer, TaskPrompt
from megatron_chimed.evaluation.scores.entities import SCORINGS, AnnotatedText, score_entities
from megatron_chimed.evaluation.scores.entity_answers import Mention, ParsedEntities, parse_entities
from megatron_chimed.evaluation.tasks.answer_settings import AnswerSettings
from megatron_chimed.evaluation.tasks.entity_rows import EntityItem, read_entity_items

INSTRUCTION = (
    "请找出下面医学文本中的所有命名实体，实体要与原文一致。实体类型：{types}。"
    "每行写一种类型，格式为“类型：实体1，实体2”；没有某类实体时写“类型：无”。"
)
NOTHING = "无"


@dataclass(frozen=True, kw_only=True)
class EntitiesTask:
    """Texts with named entities."""

    name: str
    """Its name in the report."""
    kind: Literal["entities"] = "entities"
    """What sort of task it is."""
    title: str = ""
    """For the report; empty: the name."""
    source: str = ""
    """Where the texts come from, for the report."""
    data: tuple[str, ...]
    """Files, folders or patterns of the texts."""
    types: dict[str, tuple[str, ...]]
    """Other names of each type, as files or models write them."""
    shots: tuple[str, ...] = ()
    """Files of annotated texts that precede each text with their answers."""
    num_shots: int = 0
    """Number of annotated texts before each, in file order."""
    style: Literal["chat", "text"] = "chat"
    """Whether shots are earlier turns in the model's template, or all is one text."""
    instruction: str = INSTRUCTION
    """What is asked, with {types}; ours, since the papers publish none."""
    inclusive_end: bool | None = None
    """Whether ends of entities are their last character; null: so for end_idx only."""
    fold_width: bool = False
    """Whether full-width letters, digits and marks equal half-width ones."""
    answers: AnswerSettings = AnswerSettings()
    """How answers are drawn."""
    limit: int = 0
    """Largest number of texts, the first ones; 0: all."""

    def __post_init__(self) -> None:
        """Checks what depends on each other."""
        for key in ("data", "types"):
            if not getattr(self, key):
                raise ConfigError(f"task {self.name}: {key} is empty.")
        if self.num_shots and not self.shots:
            raise ConfigError(
                f"task {self.name}: num_shots is {self.num_shots}, but shots lists no files."
            )
        for key in ("num_shots", "limit"):
            if getattr(self, key) < 0:
                raise ConfigError(
                    f"task {self.name}: {key} is {getattr(self, key)}: set 0 or more."
                )
        names = [name for type_, others in self.types.items() for name in (type_, *others)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"task {self.name}: types name {', '.join(twice)} twice.")

    def measures(self) -> list["EntitiesMeasure"]:
        """One measure.

        Raises:
            DataError: Files are damaged, no row can be used, or there are too few shots.
        """
        items = read_entity_items(self.data, self.types, self.inclusive_end)
        items = items[: self.limit] if self.limit else items
        return [EntitiesMeasure(task=self, items=tuple(items), shots=self._shots())]

    def _shots(self) -> tuple[AnnotatedText, ...]:
        if not self.num_shots:
            return ()
        items = read_entity_items(self.shots, self.types, self.inclusive_end)
        found = [item.document for item in items if item.document is not None]
        if len(found) < self.num_shots:
            raise DataError(
                f"task {self.name}: {self.num_shots} shots are asked for, but "
                f"{', '.join(self.shots)} has {len(found)}. Lower num_shots, or add some."
            )
        return tuple(found[: self.num_shots])


@dataclass(frozen=True, kw_only=True)
class EntitiesMeasure:
    """A task's texts."""

    task: EntitiesTask
    items: tuple[EntityItem, ...]
    shots: tuple[AnnotatedText, ...] = field(default=())

    @property
    def name(self) -> str:
        """Of the task."""
        return self.task.name

    @property
    def title(self) -> str:
        """With shots and layout; the prompt is ours, and so are scores without places."""
        task = self.task
        ours = "our prompt" if task.instruction == INSTRUCTION else "own prompt"
        return f"{task.title or task.name}, entities, {task.num_shots}-shot, {task.style}, {ours}"

    @property
    def main_score(self) -> str:
        """As evaluations of chat models count entities."""
        return "surface_f1"

    @property
    def entries(self) -> Sequence[MeasureEntry]:
        """All texts."""
        return self._entries

    @functools.cached_property
    def _entries(self) -> Sequence[MeasureEntry]:
        return [self._entry(item) for item in self.items]

    def judge(self, index: int, response: Given) -> tuple[dict[str, float], dict[str, object]]:
        """The F1 of the three scores on this text, and what the answer names."""
        assert isinstance(response, Answer), "what the entries ask"
        document = self._document(index)
        parsed = parse_entities(response.text, self.task.types)
        report = score_entities([document], [parsed], fold_width=self.task.fold_width, draws=1)
        scores = {f"{scoring}_f1": report.micro[scoring].f1 for scoring in SCORINGS}
        scores |= {
            "num_named": float(report.num_named),
            "num_hallucinated": float(report.num_hallucinated),
            "unparsed": float(parsed.problem is not None),
        }
        details: dict[str, object] = {
            "place": index,
            "named": [list(mention) for mention in parsed.mentions],
            "right": [[s.type, document.text[s.start : s.end]] for s in document.spans],
            "problem": parsed.problem,
            "unknown_types": list(parsed.unknown_types),
        }
        return scores, details

    def figures(self, items: Sequence[MeasuredItem], seed: int) -> list[Figure]:
        """F1, precision and recall of each score, F1 by type, and shares of what went wrong."""
        kept = used(items)
        documents = [self._document(item.details["place"]) for item in kept]
        answers = [_parsed(item) for item in kept]
        figures = _score_figures(documents, answers, seed, fold_width=self.task.fold_width)
        figures += self._type_figures(documents, answers, seed)
        named = round(sum(item.scores["num_named"] for item in kept))
        absent = round(sum(item.scores["num_hallucinated"] for item in kept))
        unparsed = round(sum(item.scores["unparsed"] for item in kept))
        absence = share("entities not in the text", absent, named, higher_is_better=False)
        return [
            *figures,
            absence,
            share("unparsed_rate", unparsed, len(kept), higher_is_better=False),
        ]

    def baselines(self) -> list[Figure]:
        """None: an answer without knowledge names nothing, and scores 0."""
        return []

    def _type_figures(
        self, documents: list[AnnotatedText], answers: list[ParsedEntities], seed: int
    ) -> list[Figure]:
        """The F1 of each type by itself, with an interval of its own."""
        figures = []
        for type_ in self.task.types:
            of_type = [
                AnnotatedText(text=d.text, spans=tuple(s for s in d.spans if s.type == type_))
                for d in documents
            ]
            named = [
                ParsedEntities(
                    mentions=tuple(m for m in a.mentions if m.type == type_), problem=a.problem
                )
                for a in answers
            ]
            found = _score_figures(of_type, named, seed, fold_width=self.task.fold_width)
            figures += [
                _of_group(figure, type_) for figure in found if figure.metric.endswith("F1")
            ]
        return figures

    def _document(self, index: int) -> AnnotatedText:
        document = self.items[index].document
        assert document is not None, "an item without a document is not asked"
        return document

    def _entry(self, item: EntityItem) -> MeasureEntry:
        if item.document is None:
            return MeasureEntry(id=item.id, group=item.group, request=None, problem=item.problem)
        task = self.task
        is_chat = task.style == "chat"
        end = "" if is_chat else "\n\n"
        shots = tuple((_question(shot), self._answer(shot) + end) for shot in self.shots)
        prompt = TaskPrompt(
            head=task.instruction.replace("{types}", "、".join(task.types)) + "\n\n",
            shots=shots,
            question=_question(item.document),
            is_chat=is_chat,
        )
        stops = () if is_chat else ("\n\n",)
        request = task.answers.request(prompt, stops)
        expected = item.document.spans
        return MeasureEntry(id=item.id, group=item.group, request=request, expected=expected)

    def _answer(self, document: AnnotatedText) -> str:
        lines = []
        for type_ in self.task.types:
            spans = sorted((s.start, s.end) for s in document.spans if s.type == type_)
            texts = dict.fromkeys(document.text[start:end] for start, end in spans)
            lines.append(f"{type_}：{'，'.join(texts) or NOTHING}")
        return "\n".join(lines)


def _question(document: AnnotatedText) -> str:
    return f"文本：{document.text.strip()}\n实体：\n"


def _parsed(item: MeasuredItem) -> ParsedEntities:
    named: Sequence[Sequence[str]] = item.details["named"]
    mentions = tuple(Mention(type_, text) for type_, text in named)
    return ParsedEntities(mentions=mentions, problem=item.details["problem"])


def _of_group(figure: Figure, group: str) -> Figure:
    return Figure(
        metric=figure.metric,
        value=figure.value,
        num_used=figure.num_used,
        group=group,
        interval=figure.interval,
        higher_is_better=True,
    )


def _score_figures(
    documents: list[AnnotatedText],
    answers: list[ParsedEntities],
    seed: int,
    *,
    fold_width: bool,
) -> list[Figure]:
    """F1, precision and recall of each score; values are None without documents."""
    metrics = [f"{s} {name}" for s in SCORINGS for name in ("F1", "precision", "recall")]
    if not documents:
        return [Figure(metric=metric, value=None, num_used=0) for metric in metrics]
    report = score_entities(documents, answers, fold_width=fold_width, seed=seed)
    each = [
        score_entities([document], [answer], fold_width=fold_width, draws=1).micro
        for document, answer in zip(documents, answers, strict=True)
    ]
    figures: dict[str, tuple[float, Interval | None]] = {}
    for scoring in SCORINGS:
        micro, (low, high) = report.micro[scoring], report.f1_intervals[scoring]
        of_each = [scores[scoring] for scores in each]
        named, right = [s.num_named for s in of_each], [s.num_right for s in of_each]
        precise = [s.precision * s.num_named for s in of_each]
        recalled = [s.recall * s.num_right for s in of_each]
        figures[f"{scoring} F1"] = micro.f1, Interval(low=low, high=high, method=BOOTSTRAP)
        figures[f"{scoring} precision"] = (
            micro.precision,
            ratio_interval(precise, named, seed=seed),
        )
        figures[f"{scoring} recall"] = micro.recall, ratio_interval(recalled, right, seed=seed)
    return [
        Figure(
            metric=metric,
            value=figures[metric][0],
            num_used=len(documents),
            interval=figures[metric][1],
            higher_is_better=True,
        )
        for metric in metrics
    ]
