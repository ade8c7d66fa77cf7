"""Precision, recall and F1 of named entities that a model names without their places.

Three scores, because they answer different questions. `surface` compares sets of (type, text) of a
document, as evaluations of chat models do; a missed second mention does not count. `span` places
each named entity in the text, wherever it occurs, and compares places exactly, as supervised
systems are scored. `relaxed` asks for an overlap with an entity of the type instead.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from megatron_chimed.errors import DataError
from megatron_chimed.evaluation.scores.entity_answers import Mention, ParsedEntities
from megatron_chimed.evaluation.scores.statistics import DRAWS

EntityScoring: TypeAlias = Literal["surface", "span", "relaxed"]
SCORINGS: tuple[EntityScoring, ...] = ("surface", "span", "relaxed")
_STRIPPED = " \t\r\n\u3000\"'“”‘’「」『』"
_NARROW = {**{wide: wide - 0xFEE0 for wide in range(0xFF01, 0xFF5F)}, 0x3000: 0x20}


class EntitySpan(NamedTuple):
    """An entity in a text."""

    type: str
    start: int
    """First character, from 0."""
    end: int
    """After the last character."""


@dataclass(frozen=True, kw_only=True)
class AnnotatedText:
    """A document with its entities."""

    text: str
    """As annotated."""
    spans: tuple[EntitySpan, ...]
    """Entities; they may be nested."""


@dataclass(frozen=True, kw_only=True)
class EntityScore:
    """Precision, recall and F1 over documents."""

    precision: float
    """0 if nothing was named."""
    recall: float
    """0 if there is nothing to name."""
    f1: float
    """Their harmonic mean; 0 if both are."""
    num_named: int
    """Entities that the answers name; in `span` and `relaxed`, at every place, and those that are
    not in the text once."""
    num_right: int
    """Entities of the documents."""


@dataclass(frozen=True, kw_only=True)
class EntityReport:
    """All scores of a set of answers."""

    micro: Mapping[EntityScoring, EntityScore]
    """Over all entities."""
    macro_f1: Mapping[EntityScoring, float]
    """Mean of the types' F1, over types that occur in documents or answers."""
    f1_intervals: Mapping[EntityScoring, tuple[float, float]]
    """95 % intervals of the micro F1, by bootstrap over documents."""
    by_type: Mapping[EntityScoring, Mapping[str, EntityScore]]
    """Per type."""
    num_hallucinated: int
    """Named entities that are not in the text."""
    num_named: int
    """Different named entities of each document, in all."""
    problems: Mapping[str, int]
    """Answers that could not be read, by reason; they name nothing and count."""
    num_documents: int
    """All documents; none is left out."""


def annotated_text(
    text: str,
    entities: Iterable[tuple[str, int, int]],
    *,
    inclusive_end: bool,
    where: str = "a document",
) -> AnnotatedText:
    """A document from types and offsets of its entities.

    Args:
        text: The document.
        entities: Type, first character and end of each.
        inclusive_end: Whether the end is the last character (CMeEE) or the one after (CCKS).
        where: Names the document in errors.

    Raises:
        DataError: An offset is outside the text, or an entity is empty.
    """
    spans = []
    for type_, start, last in entities:
        end = last + inclusive_end
        if not 0 <= start < end <= len(text):
            raise DataError(
                f"{where}: a {type_} covers characters {start} to {end} (exclusive) of "
                f"{len(text)}. Check whether ends are inclusive."
            )
        spans.append(EntitySpan(type_, start, end))
    return AnnotatedText(text=text, spans=tuple(dict.fromkeys(spans)))


def check_texts(document: AnnotatedText, texts: Sequence[str], where: str = "a document") -> None:
    """Compares entities with the texts that a file gives beside their offsets, in order.

    Raises:
        DataError: One differs: most often, ends are inclusive and were taken as exclusive.
    """
    for span, written in zip(document.spans, texts, strict=True):
        found = document.text[span.start : span.end]
        if found != written:
            raise DataError(
                f"{where}: characters {span.start} to {span.end} are {found!r}, but the entity is "
                f"{written!r}. Check whether ends are inclusive, and that offsets count characters."
            )


def normalize(text: str, *, fold_width: bool = False) -> str:
    """The text as compared: without spaces and quotes around it; full width as half if asked."""
    text = text.translate(_NARROW) if fold_width else text
    return text.strip(_STRIPPED)


def locate(text: str, mentions: Iterable[Mention]) -> list[EntitySpan]:
    """Every place of the mentions in a text.

    From left to right the longest mention of a type takes its characters, so that 肺炎 is not found
    again in 支气管肺炎; mentions of other types may overlap it.
    """
    by_type: dict[str, list[str]] = {}
    for type_, mention in mentions:
        by_type.setdefault(type_, []).append(mention)
    spans = []
    for type_, texts in by_type.items():
        texts.sort(key=len, reverse=True)
        at = 0
        while at < len(text):
            found = next((one for one in texts if one and text.startswith(one, at)), None)
            if found:
                spans.append(EntitySpan(type_, at, at + len(found)))
            at += len(found) if found else 1
    return spans


def score_entities(
    documents: Sequence[AnnotatedText],
    answers: Sequence[ParsedEntities],
    *,
    fold_width: bool = False,
    seed: int = 0,
    draws: int = DRAWS,
) -> EntityReport:
    """Scores the entities that answers name against those of the documents.

    Args:
        documents: Annotated texts.
        answers: Parsed answer to each.
        fold_width: Whether full-width letters, digits and punctuation equal half-width ones.
        seed: Of the bootstrap.
        draws: Resamples of the bootstrap.

    Raises:
        DataError: The numbers of documents and answers differ, or there are none.
    """
    if len(documents) != len(answers) or not documents:
        raise DataError(
            f"entities need one answer for each document: {len(documents)} documents and "
            f"{len(answers)} answers."
        )
    counted = [_count(*pair, fold_width) for pair in zip(documents, answers, strict=True)]
    types = sorted({key[1] for counts, _ in counted for key in counts})
    # [documents, scorings, types, 4]
    table = np.zeros((len(documents), len(SCORINGS), len(types), 4), np.int64)
    for row, (counts, _) in enumerate(counted):
        for (scoring, type_), numbers in counts.items():
            table[row, SCORINGS.index(scoring), types.index(type_)] = numbers
    totals = table.sum(axis=0)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(documents), [1 / len(documents)] * len(documents), size=draws)
    resampled = _f1(np.tensordot(weights, table.sum(axis=2), axes=1))  # [draws, scorings]
    lows, highs = np.percentile(resampled, (2.5, 97.5), axis=0)
    return EntityReport(
        micro={one: _score(totals[place].sum(axis=0)) for place, one in enumerate(SCORINGS)},
        macro_f1={
            one: float(_f1(totals[place]).mean()) if types else 0.0
            for place, one in enumerate(SCORINGS)
        },
        f1_intervals={
            one: (float(lows[place]), float(highs[place])) for place, one in enumerate(SCORINGS)
        },
        by_type={
            one: {type_: _score(totals[place, column]) for column, type_ in enumerate(types)}
            for place, one in enumerate(SCORINGS)
        },
        num_hallucinated=sum(hallucinated for _, hallucinated in counted),
        num_named=int(totals[0, :, 1].sum()),
        problems=dict(Counter(one.problem for one in answers if one.problem)),
        num_documents=len(documents),
    )


def _count(
    document: AnnotatedText, answer: ParsedEntities, fold_width: bool
) -> tuple[dict[tuple[EntityScoring, str], list[int]], int]:
    """Of each scoring and type: named and right, named, found and right, right; hallucinations."""
    text = document.text.translate(_NARROW) if fold_width else document.text
    named = {
        Mention(one.type, normalize(one.text, fold_width=fold_width)) for one in answer.mentions
    }
    named = {one for one in named if one.text}
    right = {Mention(one.type, normalize(text[one.start : one.end])) for one in document.spans}
    absent = [one for one in named if one.text not in text]
    placed, gold = set(locate(text, named)), set(document.spans)
    counts: dict[tuple[EntityScoring, str], list[int]] = {}

    def add(scoring: EntityScoring, column: int, found: Iterable[Any]) -> None:
        for one in found:
            counts.setdefault((scoring, one.type), [0, 0, 0, 0])[column] += 1

    compared: dict[EntityScoring, tuple[set[Any], set[Any]]] = {
        "surface": (named, right),
        "span": (placed, gold),
        "relaxed": (placed, gold),
    }
    for scoring, (ours, theirs) in compared.items():
        both = ours & theirs
        add(scoring, 0, [o for o in placed if _overlaps(o, gold)] if scoring == "relaxed" else both)
        add(scoring, 1, ours)
        add(scoring, 2, [g for g in gold if _overlaps(g, placed)] if scoring == "relaxed" else both)
        add(scoring, 3, theirs)
        if scoring != "surface":
            add(scoring, 1, absent)
    return counts, len(absent)


def _overlaps(span: EntitySpan, others: Iterable[EntitySpan]) -> bool:
    return any(
        span.type == one.type and span.start < one.end and one.start < span.end for one in others
    )


def _score(numbers: np.ndarray) -> EntityScore:
    precision, recall = (numbers[::2] / np.maximum(numbers[1::2], 1)).tolist()
    return EntityScore(
        precision=precision,
        recall=recall,
        f1=float(_f1(numbers)),
        num_named=int(numbers[1]),
        num_right=int(numbers[3]),
    )


def _f1(numbers: np.ndarray) -> np.ndarray:
    """F1 of counts `[..., 4]`."""
    shares = numbers[..., ::2] / np.maximum(numbers[..., 1::2], 1)
    total = shares.sum(axis=-1)
    return 2 * shares.prod(axis=-1) / np.where(total > 0, total, 1)
