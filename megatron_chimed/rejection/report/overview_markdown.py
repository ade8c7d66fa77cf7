"""The report of all rounds, Markdown."""

from collections.abc import Sequence

from megatron_chimed.rejection import selection_rules as selection
from megatron_chimed.rejection.report.conclusions import remarks, verdict
from megatron_chimed.rejection.report.formatting import cell, counted, markdown
from megatron_chimed.rejection.report.round_report import RoundReport, policies


def overview_text(reports: Sequence[RoundReport]) -> str:
    """The Markdown text."""
    sets, rounds = policies(reports), {report.number: report for report in reports}
    rows = []
    for number, answers in sets.items():
        report = rounds.get(number)
        change = report.change.reward if report and report.change else None
        rows.append(
            [
                str(number),
                cell(answers.reward, ".3f"),
                cell(change, "+.3f") if change else "",
                cell(answers.tokens, ".1f"),
                cell(answers.kl, ".3f"),
                cell(answers.entropy, ".3f"),
                cell(answers.distinct_2, ".3f"),
                cell(answers.unique, ".1%"),
                f"{sum(report.decisions.values()):,}" if report else "",
                f"{report.decisions.get(selection.SELECTED, 0):,}" if report else "",
            ]
        )
    names = (
        "rounds of training",
        "score",
        "change by the round",
        "tokens per answer",
        "KL to the first policy, nats per answer",
        "entropy, nats per token",
        "distinct-2",
        "different texts",
        "candidates",
        "selected",
    )
    parts = [
        f"# Rejection sampling, {counted(len(reports), 'round')}\n",
        "\n".join(
            f"- Round {report.number}: {' '.join([verdict(report), *remarks(report)])}"
            for report in reports
        )
        + "\n",
        "Fresh answers of each policy, and the candidates it was trained on:\n",
        markdown(names, rows),
        "![](overview.png)\n" if sets else "",
        "The end of each round's report explains the numbers.\n",
    ]
    return "\n".join(part for part in parts if part.strip())
