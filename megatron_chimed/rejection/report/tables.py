"""Tables of a round: fresh answers before and after, side by side."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from megatron_chimed.rejection import selection_rules as selection
from megatron_chimed.rejection.report.conclusions import remarks, verdict
from megatron_chimed.rejection.report.formatting import cell, counted, is_negative_kl
from megatron_chimed.rejection.report.metrics import Estimate
from megatron_chimed.rejection.report.round_report import AnswerSet, RoundReport

METRICS = (
    # field of AnswerSet, label, number format
    ("prompts", "prompts", ",d"),
    ("answers", "answers", ",d"),
    ("reward", "score", ".3f"),
    ("reward_quantiles", "score at 5 / 25 / 50 / 75 / 95%", ".2f"),
    ("tokens", "tokens per answer", ".1f"),
    ("unfinished", "cut off at longest length", ".1%"),
    ("kl", "KL to first policy, nats/answer", ".3f"),
    ("kl_per_token", "KL to first policy, nats/token", ".4f"),
    ("entropy", "entropy, nats/token", ".3f"),
    ("distinct_1", "distinct-1", ".3f"),
    ("distinct_2", "distinct-2", ".3f"),
    ("unique", "different texts", ".1%"),
    ("similarity", "similarity within a prompt", ".3f"),
)


def terminal_table(report: RoundReport) -> Table:
    """The fresh answers before and after, for the terminal."""
    learned = report.decisions.get(selection.SELECTED, 0)
    candidates = counted(sum(report.decisions.values()), "candidate")
    notes = [f"{remark}\n" for remark in remarks(report)]
    table = Table(
        title=f"Round {report.number}: {verdict(report)}",
        title_justify="left",
        caption="".join(notes) + f"{learned:,} of {candidates} learned; ± is the standard error",
        caption_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("fresh answers")
    for name in ("before", "after", "change"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in comparison(report, brief=True):
        table.add_row(*row)
    return table


def comparison(report: RoundReport, *, brief: bool = False) -> list[list[str]]:
    """Rows of label, before, after and change."""
    rows = set_rows([report.before, report.after], brief=brief)
    if report.before is None or report.after is None:
        return [[*row, ""] for row in rows]
    specs = {label: (field, spec) for field, label, spec in METRICS}
    return [[*row, _moved(report, *specs[row[0]])] for row in rows]


def set_rows(
    sets: Sequence[AnswerSet | None], *, brief: bool = False, leave_out: Sequence[str] = ()
) -> list[list[str]]:
    """A row for each metric that any of the sets has, a column for each set.

    Args:
        sets: The columns.
        brief: As in `cell`.
        leave_out: Fields of `AnswerSet` to omit.
    """
    rows = []
    for field, label, spec in METRICS:
        if field in leave_out:
            continue
        values = [getattr(found, field) if found else None for found in sets]
        cells = [
            # Without its error, an impossible negative KL would look valid.
            cell(value, spec, brief=brief and not is_negative_kl(field, value))
            for value in values
        ]
        if any(cells):
            rows.append([label, *cells])
    return rows


def _moved(report: RoundReport, field: str, spec: str) -> str:
    """The change of a metric, with its error if it was measured per prompt."""
    if report.change and field in ("reward", "tokens"):
        return cell(getattr(report.change, field), f"+{spec}")
    old, new = getattr(report.before, field), getattr(report.after, field)
    if isinstance(old, Estimate) and isinstance(new, Estimate):
        old, new = old.mean, new.mean
    if not (isinstance(old, float) and isinstance(new, float)):
        return ""
    if spec.endswith("%"):
        return f"{100 * (new - old):+.1f} points"
    return f"{new - old:+{spec}}"
