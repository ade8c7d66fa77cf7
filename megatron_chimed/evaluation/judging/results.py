"""The results of judges, for reports."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from megatron_chimed.evaluation.figures import Figure


@dataclass(frozen=True, kw_only=True)
class JudgedSubject:
    """A model, or two that were compared, as a judge sees them."""

    name: str
    num_total: int
    """Pairs of answers, or answers; those used and those dropped together."""
    dropped: Mapping[str, int]
    """Numbers of those without a verdict, by reason."""
    figures: tuple[Figure, ...]
    """Grouped by aspect or tag; figures of two are seen from the first."""


@dataclass(frozen=True, kw_only=True)
class JudgementResult:
    """One judge on one measure."""

    judge: str
    measure: str
    title: str
    kind: Literal["pairwise", "rubric"]
    prompt_sha256: str
    """Of the prompt, with its aspects, before an item is filled in."""
    dates: tuple[str, ...]
    """First and last day of the calls (UTC); empty for people."""
    num_calls: int
    subjects: tuple[JudgedSubject, ...]
    agreement: tuple[Figure, ...] = ()
    """Cohen's kappa with another judge (the group) on what both decided."""


def judgements_markdown(results: Sequence[JudgementResult]) -> str:
    """The results as Markdown: a table for each judge and measure."""
    return "".join(f"\n{_section(result)}" for result in results)


def table_of(figures: Sequence[Figure]) -> tuple[list[str], dict[str, dict[str, Figure]]]:
    """The metrics, and by group the figures by metric, in order."""
    rows: dict[str, dict[str, Figure]] = {}
    for figure in figures:
        rows.setdefault(figure.group, {})[figure.metric] = figure
    return list(dict.fromkeys(figure.metric for figure in figures)), rows


def _section(result: JudgementResult) -> str:
    verb = "compared" if result.kind == "pairwise" else "graded"
    days = " to ".join(result.dates) or "people"
    about = f"{result.num_calls:,} calls, {days}, prompt {result.prompt_sha256[:16]}."
    lines = [f"## {result.title}, {verb} by {result.judge}", "", about, ""]
    for subject in result.subjects:
        used = subject.num_total - sum(subject.dropped.values())
        reasons = "; ".join(f"{count:,}: {reason}" for reason, count in subject.dropped.items())
        without = f". No verdict: {reasons}" if reasons else ""
        lines += [f"{subject.name}: {used:,} of {subject.num_total:,}{without}.", ""]
        lines += _table(subject.figures)
    if result.agreement:
        lines += ["Agreement with other judges:", "", *_table(result.agreement)]
    return "\n".join(lines)


def _table(figures: Sequence[Figure]) -> list[str]:
    metrics, rows = table_of(figures)
    lines = [f"| | {' | '.join(metrics)} | n |", f"|---{'|---' * len(metrics)}|---|"]
    for group, row in rows.items():
        cells = " | ".join(_cell(row.get(metric)) for metric in metrics)
        lines.append(f"| {group or 'all'} | {cells} | {max(f.num_used for f in row.values()):,} |")
    return [*lines, ""]


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return ""
    if figure.value is None:
        return "none"
    if figure.interval is None:
        return f"{figure.value:.4f}"
    return f"{figure.value:.4f} ({figure.interval.low:.4f} to {figure.interval.high:.4f})"
