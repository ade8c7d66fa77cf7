"""The results of an evaluation: figures by model and measure, and as Markdown tables."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

from megatron_chimed.evaluation.figures import Figure, MeasuredItem, dropped_by_reason
from megatron_chimed.evaluation.measures import Measure
from megatron_chimed.evaluation.scores.statistics import PairedComparison, compare_paired

Items = Mapping[str, Mapping[str, Sequence[MeasuredItem]]]
"""By model and measure."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelResult:
    """One model in one measure."""

    model: str
    num_used: int
    dropped: dict[str, int]
    """Numbers of items that were not evaluated, by reason."""
    figures: tuple[Figure, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelComparison:
    """Two models on the items that both were evaluated on."""

    first: str
    second: str
    metric: str
    comparison: PairedComparison


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasureResult:
    """All models in one measure."""

    name: str
    title: str
    num_total: int
    main_score: str
    """The score by which models are compared item by item."""
    baselines: tuple[Figure, ...]
    models: tuple[ModelResult, ...]
    comparisons: tuple[ModelComparison, ...]
    """Of every two models, by the measure's first metric."""


def summarize(measures: Sequence[Measure], items: Items, seed: int) -> list[MeasureResult]:
    """The figures of all measures.

    Args:
        measures: In the order of the report.
        items: From `run_measures`.
        seed: Of bootstrap intervals.
    """
    return [
        MeasureResult(
            name=measure.name,
            title=measure.title,
            num_total=len(measure.entries),
            main_score=measure.main_score,
            baselines=tuple(measure.baselines()),
            models=tuple(
                _model_result(model, measure, of_model[measure.name], seed)
                for model, of_model in items.items()
            ),
            comparisons=_comparisons(measure, items, seed),
        )
        for measure in measures
    ]


def _model_result(
    model: str, measure: Measure, items: Sequence[MeasuredItem], seed: int
) -> ModelResult:
    return ModelResult(
        model=model,
        num_used=sum(item.dropped is None for item in items),
        dropped=dropped_by_reason(items),
        figures=tuple(measure.figures(items, seed)),
    )


def _comparisons(measure: Measure, items: Items, seed: int) -> tuple[ModelComparison, ...]:
    found = []
    for first, second in itertools.combinations(items, 2):
        scores = [
            {
                item.id: item.scores[measure.main_score]
                for item in items[model][measure.name]
                if item.dropped is None and measure.main_score in item.scores
            }
            for model in (first, second)
        ]
        both = [key for key in scores[0] if key in scores[1]]
        if both:
            values = [[of_model[key] for key in both] for of_model in scores]
            found.append(
                ModelComparison(
                    first=first,
                    second=second,
                    metric=measure.main_score,
                    comparison=compare_paired(*values, seed=seed),
                )
            )
    return tuple(found)


def markdown(results: Sequence[MeasureResult]) -> str:
    """The results as Markdown: a table for each measure."""
    return "# Evaluation\n\n" + "\n".join(map(_section, results))


def _section(result: MeasureResult) -> str:
    lines = [f"## {result.title}", ""]
    models = result.models
    lines.append(f"| | {' | '.join(model.model for model in models)} | n |")
    lines.append(f"|---{'|---' * len(models)}|---|")
    for place, figure in enumerate(models[0].figures if models else ()):
        name = f"{figure.metric}, {figure.group}" if figure.group else figure.metric
        cells = [_cell(model.figures[place]) for model in models]
        lines.append(f"| {name} | {' | '.join(cells)} | {figure.num_used:,} |")
    for figure in result.baselines:
        value = _number(figure.value)
        lines.append(f"| {figure.metric} |{f' {value} |' * len(models)} {figure.num_used:,} |")
    lines.append("")
    for model in models:
        used = f"{model.num_used:,} of {result.num_total:,} items"
        reasons = "; ".join(f"{count:,}: {reason}" for reason, count in model.dropped.items())
        lines.append(f"{model.model}: {used}{f'. Not evaluated: {reasons}' if reasons else ''}.  ")
    lines += [
        f"{figure.metric}: `{figure.signature}`  "
        for figure in (models[0].figures if models else ())
        if figure.signature
    ]
    lines += [_comparison_line(entry) for entry in result.comparisons]
    return "\n".join(lines) + "\n"


def _comparison_line(entry: ModelComparison) -> str:
    found = entry.comparison
    low, high = _number(found.low), _number(found.high)
    return (
        f"{entry.first} minus {entry.second}: {entry.metric} {found.difference:+.4f} ({low} to "
        f"{high}), p = {found.p_value:.4f} ({found.test}, {found.num_items:,} items).  "
    )


def _cell(figure: Figure) -> str:
    note = f"; {figure.note}" if figure.note else ""
    if figure.interval is None:
        return f"{_number(figure.value)}{note}"
    low, high = _number(figure.interval.low), _number(figure.interval.high)
    return f"{_number(figure.value)} ({low} to {high}){note}"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
