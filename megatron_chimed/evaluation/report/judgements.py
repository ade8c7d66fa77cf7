"""The page's sections about judges."""

import html
from collections.abc import Sequence

from megatron_chimed.evaluation.figures import Figure
from megatron_chimed.evaluation.judging.results import JudgedSubject, JudgementResult, table_of
from megatron_chimed.evaluation.report.page import cell
from megatron_chimed.evaluation.report.wording import both

_NOTES = {
    "pairwise": "Wins, ties and losses are of the first of two models; a win needs both orders.",
    "rubric": "A judge is no physician: calibrate it with people before you believe differences.",
}


def judgements_html(results: Sequence[JudgementResult]) -> str:
    """One section for each judge and measure."""
    return "".join(map(_section, results))


def _section(result: JudgementResult) -> str:
    verb = both("compared by" if result.kind == "pairwise" else "graded by")
    days = " – ".join(result.dates) or both("people")
    about = (
        f"{both('asked on')}: {days} · {both('calls')}: {result.num_calls:,} · "
        f"{both('prompt SHA-256')}: <code>{result.prompt_sha256[:16]}</code>"
    )
    return (
        f"<h2>{html.escape(result.title)}, {verb} {html.escape(result.judge)}</h2>"
        f'<p class="note">{about}<br>{both(_NOTES[result.kind])}</p>'
        f"{''.join(map(_subject, result.subjects))}{_agreement(result.agreement)}"
    )


def _subject(subject: JudgedSubject) -> str:
    dropped = "; ".join(f"{html.escape(why)}: {n:,}" for why, n in subject.dropped.items())
    used = subject.num_total - sum(subject.dropped.values())
    note = f"{both('used')}: {used:,} / {subject.num_total:,}"
    note += f" · {both('no verdict')}: {dropped}" if dropped else ""
    table = _table(subject.figures, "aspect or tag")
    return f'<h3>{html.escape(subject.name)}</h3><p class="note">{note}</p>{table}'


def _agreement(figures: Sequence[Figure]) -> str:
    return f"<h3>{both('Agreement')}</h3>{_table(figures, 'with')}" if figures else ""


def _table(figures: Sequence[Figure], corner: str) -> str:
    metrics, rows = table_of(figures)
    heads = "".join(f"<th>{both(text)}</th>" for text in (corner, *metrics, "used"))
    lines = []
    for group, row in rows.items():
        cells = "".join(
            f"<td>{cell(row[metric]) if metric in row else ''}</td>" for metric in metrics
        )
        count = max(figure.num_used for figure in row.values())
        lines.append(f'<tr><td>{both(group or "all")}</td>{cells}<td class="n">{count:,}</td></tr>')
    return f'<div class="scroll"><table><tr>{heads}</tr>{"".join(lines)}</table></div>'
