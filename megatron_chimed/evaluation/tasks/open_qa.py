"""Open questions and dialogues, compared with a reference answer by text scores.

Text scores say how alike two texts are, not whether an answer is right: they belong beside a
judge's verdicts. The mode of each score is part of its name, since modes differ by many points.
"""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from megatron_chimed.data.formats.example import Turn
from megatron_chimed.errors import ConfigError, DataError
from megatron_chimed.evaluation.aggregates import BOOTSTRAP, groups_of, mean_of, share, used
from megatron_chimed.evaluation.figures import Figure, Interval, MeasuredItem
from megatron_chimed.evaluation.measures import Given, MeasureEntry
from megatron_chimed.evaluation.requests import Answer, Dialogue, DialogueRequest, TaskPrompt
from megatron_chimed.evaluation.scores.answer_text import without_reasoning
from megatron_chimed.evaluation.scores.text_metrics.rouge import rouge_l
from megatron_chimed.evaluation.scores.text_metrics.scores import MODES, TextMode, score_texts
from megatron_chimed.evaluation.scores.text_metrics.tokens import word_tokens
from megatron_chimed.evaluation.tasks.answer_settings import AnswerSettings
from megatron_chimed.generation.prompts import Prompt, read_prompts

NO_REFERENCE = "no reference answer"
PAPERS_STOPS = ("<human>", "[human]")
_NEITHER = ("length", "distinct_1", "distinct_2")  # better neither high nor low


@dataclass(frozen=True, kw_only=True)
class OpenQATask:
    """Questions with reference answers."""

    name: str
    """Its name in the report."""
    kind: Literal["open_qa"] = "open_qa"
    """What sort of task it is."""
    title: str = ""
    """For the report; empty: the name."""
    source: str = ""
    """Where the questions come from, for the report."""
    data: tuple[str, ...]
    """Files, folders or patterns, in any format of conversations."""
    shots: tuple[str, ...] = ()
    """Files of answered questions that precede each question."""
    num_shots: int = 0
    """Number of answered questions before each, in file order."""
    style: Literal["chat", "papers"] = "chat"
    """`chat`: the model's template, with shots as earlier turns; `papers`: the text of ChiMed-GPT's
    script, with the tags <human>: and <bot>:."""
    system: str = ""
    """System prompt; empty: the template's own."""
    question: str = "{question}"
    """How each question is put."""
    turns: Literal["last", "all"] = "last"
    """Which answers of a dialogue are compared."""
    history: Literal["gold", "own"] = "gold"
    """What precedes a later turn: the dialogue's answers, or the model's own; `own` needs all
    turns."""
    modes: tuple[TextMode, ...] = ("standard",)
    """Whose definitions of BLEU and ROUGE."""
    answers: AnswerSettings = AnswerSettings()
    """How answers are drawn."""
    id_key: str = "id"
    """Key of a row's id."""
    category_key: str = "category"
    """Key of a row's category, by which a figure is given."""
    limit: int = 0
    """Largest number of rows, the first ones; 0: all."""

    def __post_init__(self) -> None:
        """Checks what depends on each other."""
        if not self.data:
            raise ConfigError(f"task {self.name}: data is empty. List the files of the questions.")
        if self.num_shots and not self.shots:
            raise ConfigError(
                f"task {self.name}: num_shots is {self.num_shots}, but shots lists no files."
            )
        for key in ("num_shots", "limit"):
            if getattr(self, key) < 0:
                raise ConfigError(
                    f"task {self.name}: {key} is {getattr(self, key)}: set 0 or more."
                )
        if "{question}" not in self.question:
            raise ConfigError(f"task {self.name}: question has no {{question}} in it.")
        if not self.modes or len(set(self.modes)) != len(self.modes):
            raise ConfigError(
                f"task {self.name}: modes must list each of {', '.join(MODES)} once at most, and "
                "one at least."
            )
        if self.history == "own" and (self.turns != "all" or self.style != "chat"):
            raise ConfigError(
                f"task {self.name}: history own needs turns all and style chat, since the model "
                "answers every turn in its own template."
            )

    def measures(self) -> list["OpenQAMeasure"]:
        """One measure.

        Raises:
            DataError: Files are damaged, no question has a reference, or there are too few shots.
        """
        prompts = read_prompts(self.data, id_key=self.id_key, category_key=self.category_key)
        prompts = prompts[: self.limit] if self.limit else prompts
        items = [item for prompt in prompts for item in _items(prompt, self)]
        if not any(item.is_complete for item in items):
            raise DataError(
                f"task {self.name}: no question of {', '.join(self.data)} has an answer to compare "
                "with. Give rows with answers."
            )
        return [OpenQAMeasure(task=self, items=tuple(items), shots=self._shots())]

    def _shots(self) -> tuple[tuple[str, str], ...]:
        if not self.num_shots:
            return ()
        found = [
            (prompt.conversation.turns[-1].question, prompt.reference)
            for prompt in read_prompts(self.shots)
            if prompt.reference and len(prompt.conversation.turns) == 1
        ]
        if len(found) < self.num_shots:
            raise DataError(
                f"task {self.name}: {self.num_shots} shots are asked for, but "
                f"{', '.join(self.shots)} has {len(found)} answered questions of one turn."
            )
        return tuple(found[: self.num_shots])


@dataclass(frozen=True, kw_only=True)
class OpenQAItem:
    """A question, or with the model's own history a dialogue of several."""

    id: str
    category: str
    system: str
    history: tuple[tuple[str, str], ...]
    """Earlier turns as they are in the file."""
    pairs: tuple[tuple[str, str | None], ...]
    """Questions that are asked in turn, with their references."""

    @property
    def is_complete(self) -> bool:
        """Whether there are references for all."""
        return all(reference and reference.strip() for _, reference in self.pairs)


@dataclass(frozen=True, kw_only=True)
class OpenQAMeasure:
    """A task's questions."""

    task: OpenQATask
    items: tuple[OpenQAItem, ...]
    shots: tuple[tuple[str, str], ...] = field(default=())

    @property
    def name(self) -> str:
        """Of the task."""
        return self.task.name

    @property
    def title(self) -> str:
        """With shots, layout and history."""
        task = self.task
        history = ", own history" if task.history == "own" else ""
        title = task.title or task.name
        return f"{title}, open questions, {task.num_shots}-shot, {task.style}{history}"

    @property
    def main_score(self) -> str:
        """How alike an answer and its reference are."""
        return "rouge_l"

    @property
    def entries(self) -> Sequence[MeasureEntry]:
        """All questions, or all dialogues."""
        return self._entries

    @functools.cached_property
    def _entries(self) -> Sequence[MeasureEntry]:
        return [self._entry(item) for item in self.items]

    def judge(self, index: int, response: Given) -> tuple[dict[str, float], dict[str, object]]:
        """Length, emptiness and ROUGE-L; the other scores are of all answers together."""
        answers = response.answers if isinstance(response, Dialogue) else (response,)
        pairs = []
        for (question, reference), answer in zip(self.items[index].pairs, answers, strict=True):
            assert isinstance(answer, Answer), "what the entries ask"
            text = without_reasoning(answer.text).strip()
            pairs.append({"question": question, "reference": reference, "answer": text})
        texts = [str(pair["answer"]) for pair in pairs]
        alike = [
            rouge_l(word_tokens(text), word_tokens(str(pair["reference"]))).f1
            for text, pair in zip(texts, pairs, strict=True)
        ]
        cut = [
            isinstance(answer, Answer) and answer.finish_reason == "length" for answer in answers
        ]
        scores = {
            "rouge_l": 100 * sum(alike) / len(alike),
            "length": sum(map(len, texts)) / len(texts),
            "num_answers": float(len(texts)),
            "num_empty": float(sum(not text for text in texts)),
            "num_cut": float(sum(cut)),
        }
        return scores, {"pairs": pairs}

    def figures(self, items: Sequence[MeasuredItem], seed: int) -> list[Figure]:
        """Scores of all answers by mode, shares of empty and cut ones, ROUGE-L by category."""
        kept = used(items)
        pairs = [pair for item in kept for pair in item.details["pairs"]]
        figures = [
            figure
            for mode in self.task.modes
            for figure in _text_figures(
                mode,
                [pair["answer"] for pair in pairs],
                [pair["reference"] for pair in pairs],
                seed,
            )
        ]
        for metric, score in (
            ("empty answers", "num_empty"),
            ("answers cut at the end", "num_cut"),
        ):
            count = round(sum(item.scores[score] for item in kept))
            figures.append(share(metric, count, len(pairs), higher_is_better=False))
        figures += [
            mean_of("rouge_l", of_group, metric="rouge_l [standard]", group=group, seed=seed)
            for group, of_group in groups_of(items).items()
        ]
        return figures

    def baselines(self) -> list[Figure]:
        """Answering with the reference of the next question."""
        references = [
            reference
            for item in self.items
            if item.is_complete
            for _, reference in item.pairs
            if reference
        ]
        scores = score_texts(references[1:] + references[:1], references, draws=1)
        return [
            Figure(
                metric=f"{name} [standard] of another question's reference",
                value=scores.figures[name].value,
                num_used=len(references),
            )
            for name in ("bleu_4", "rouge_l")
        ]

    def _entry(self, item: OpenQAItem) -> MeasureEntry:
        if not item.is_complete:
            return MeasureEntry(id=item.id, group=item.category, request=None, problem=NO_REFERENCE)
        first = self._prompt(item, item.pairs[0][0])
        stops = PAPERS_STOPS if self.task.style == "papers" else ()
        request = self.task.answers.request(first, stops)
        if self.task.history == "own":
            later = [
                self.task.answers.request(TaskPrompt(question=self._put(question), is_chat=True))
                for question, _ in item.pairs[1:]
            ]
            request = DialogueRequest(questions=(request, *later))
        return MeasureEntry(
            id=item.id, group=item.category, request=request, expected=[r for _, r in item.pairs]
        )

    def _prompt(self, item: OpenQAItem, question: str) -> TaskPrompt:
        shots = tuple((self._put(q), answer) for q, answer in self.shots)
        asked, system = self._put(question), self.task.system or item.system
        if self.task.style == "chat":
            return TaskPrompt(
                shots=shots, history=item.history, question=asked, is_chat=True, system=system
            )
        history = "".join(_tagged(q, a) for q, a in item.history)
        return TaskPrompt(
            head=f"{system}\n" if system else "",
            shots=tuple((_tagged(q), f"{answer}\n") for q, answer in shots),
            question=f"{history}{_tagged(asked)}",
        )

    def _put(self, question: str) -> str:
        return self.task.question.replace("{question}", question)


def _tagged(question: str, answer: str | None = None) -> str:
    return f"<human>:{question}\n<bot>:" + ("" if answer is None else f"{answer}\n")


def _items(prompt: Prompt, task: OpenQATask) -> list[OpenQAItem]:
    """The items of a row."""
    *earlier, last = prompt.conversation.turns
    turns = [*earlier, dataclasses.replace(last, answer=prompt.reference or "")]
    asked = [(turn.question, turn.answer or None) for turn in turns]

    def item(name: str, start: int, end: int) -> OpenQAItem:
        return OpenQAItem(
            id=name,
            category=prompt.category,
            system=prompt.conversation.system,
            history=tuple(_pair(turn) for turn in turns[:start]),
            pairs=tuple(asked[start:end]),
        )

    count = len(turns)
    if task.history == "own":
        return [item(prompt.id, 0, count)]
    if task.turns == "last":
        return [item(prompt.id, count - 1, count)]
    return [item(f"{prompt.id}@{turn + 1}", turn, turn + 1) for turn in range(count)]


def _pair(turn: Turn) -> tuple[str, str]:
    return turn.question, turn.answer


def _text_figures(
    mode: TextMode, answers: list[str], references: list[str], seed: int
) -> list[Figure]:
    """The same figures in the same order, also without any answer."""
    scores = score_texts(answers or ["-"], references or ["-"], mode=mode, seed=seed)
    figures = []
    for name, found in scores.figures.items():
        interval = None
        if found.low is not None and found.high is not None and answers:
            interval = Interval(low=found.low, high=found.high, method=BOOTSTRAP)
        figures.append(
            Figure(
                metric=f"{name} [{mode}]",
                value=found.value if answers else None,
                num_used=len(answers),
                interval=interval,
                higher_is_better=None if name in _NEITHER else True,
                signature=found.signature,
            )
        )
    return figures
