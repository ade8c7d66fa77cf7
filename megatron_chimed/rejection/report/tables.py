"""The numbers of rounds as text: did it help, what did it cost."""

import math
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from megatron_chimed.observe.intervals import Z_95
from megatron_chimed.rejection import selection
from megatron_chimed.rejection.report.measures import Estimate
from megatron_chimed.rejection.report.summary import AnswerSet, RoundReport, policies

METRICS = (
    # field of AnswerSet, what it is called, how its values are written
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
LEAST_KL = {"kl": 1e-3, "kl_per_token": 1e-4}  # the last digit shown
NOTES = """\
## How to read the numbers

- A number after ± is the standard error. It counts each prompt once, since answers to one prompt
  are alike; changes are taken prompt by prompt, so that easy and hard prompts cancel. Intervals
  are 95% (Student's t).
- Scores are the reward model's opinion, which training learns to please: read some answers before
  you believe a rise, the more so where KL is large. A difference of x between two answers means
  that it prefers the better one with probability 1 / (1 + exp(-x)).
- KL is the mean of log p(policy that drew the answer) - log p(first policy), the first being
  the one before round 1. No KL divergence is below 0, but its estimate from few answers can be: it
  is shown with its standard error then, and a remark says so. KL and entropy are exact in
  expectation only for draws at temperature 1 without top-k, top-p or a repetition penalty;
  otherwise they tell rounds apart and no more.
- distinct-n is the number of different n-grams of tokens, divided by the number of tokens. It falls
  as a set of answers grows, so it compares sets of like size only; the entropy does not.
- Similarity is the share of common character 3-grams (1: the same), as `selection.near_duplicate`
  measures it; of a prompt's answers the first 4 count.
- Spearman's correlation goes from -1 (the longest answer scores lowest) over 0 to 1.
"""


def asked(report: RoundReport) -> str:
    """What an answer before or after is to."""
    return "held-out prompt" if report.held_out else "training prompt"


def counted(number: int, noun: str) -> str:
    """A number of what a noun says."""
    return f"{number:,} {noun}" + ("s" if number != 1 else "")


def verdict(report: RoundReport) -> str:
    """One sentence: whether the round helped."""
    change = report.change
    if change is None:
        return "Nobody can tell whether the round helped: no prompt has a score before and after."
    told = f"the mean score on {counted(change.reward.prompts, asked(report))} changed by "
    told += _with_interval(change.reward, "+.3f")
    low, high = change.reward.interval or (None, None)
    if low is None:
        return f"Too few prompts to tell whether the round helped: {told}."
    if low > 0:
        return f"By the reward model's scores the round helped: {told}."
    if high < 0:
        return f"By the reward model's scores the round did harm: {told}."
    return f"No difference beyond chance: {told}."


def costs(report: RoundReport) -> list[str]:
    """What the round did to length, diversity and distance, a sentence each."""
    before, after, change = report.before, report.after, report.change
    if before is None or after is None:
        return []
    lines = [
        f"Length: {_from_to(before.tokens.mean, after.tokens.mean, '.1f')} tokens per answer"
        + (f", {_with_interval(change.tokens, '+.1f')}" if change else "")
        + f"; cut off {_from_to(before.unfinished, after.unfinished, '.1%')}."
    ]
    diversity = []
    if before.entropy and after.entropy:
        pair = _from_to(before.entropy.mean, after.entropy.mean, ".3f")
        diversity.append(f"entropy {pair} nats per token")
    if before.distinct_2 is not None and after.distinct_2 is not None:
        diversity.append(f"distinct-2 {_from_to(before.distinct_2, after.distinct_2, '.3f')}")
    diversity.append(f"different texts {_from_to(before.unique, after.unique, '.1%')}")
    lines.append(f"Diversity: {', '.join(diversity)}.")
    if after.kl and after.kl_per_token:
        lines.append(
            f"Distance: KL to the first policy {cell(after.kl, '.3f')} nats per answer "
            f"({after.kl_per_token.mean:.4f} per token)"
            + (f", before the round {cell(before.kl, '.3f')}." if before.kl else ".")
        )
    return lines + remarks(report)


def remarks(report: RoundReport) -> list[str]:
    """What the report shows that cannot be, and why it is shown; a sentence each."""
    sets = {"before": report.before, "after": report.after, "of the candidates": report.candidates}
    return [
        f"The KL {name} is below 0: {_why_negative(found)}"
        for name, found in sets.items()
        if found is not None and _is_negative_kl("kl", found.kl)
    ]


def _is_negative_kl(field: str, value: object) -> bool:
    """Whether it is shown as one: that of the first policy to itself is 0 up to rounding."""
    is_kl = field in LEAST_KL and isinstance(value, Estimate)
    return is_kl and value.mean <= -LEAST_KL[field] / 2


def _why_negative(found: AnswerSet) -> str:
    """What an estimate below 0 of what never is means."""
    told = f"{counted(found.answers, 'answer')} to {counted(found.prompts, 'prompt')}"
    error = found.kl.error
    if error is not None and found.kl.mean + Z_95 * error < 0:
        return (
            f"by more than {told} can explain by chance. Draws with a temperature other than 1, "
            "top-k, top-p or a repetition penalty are not the policy's own, and what is measured "
            "on them is no KL."
        )
    return f"{told} are too few to tell it from 0, which is the least that it can be."


def overview_text(reports: Sequence[RoundReport]) -> str:
    """The report of all rounds, Markdown."""
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
        "learned",
    )
    parts = [
        f"# Rejection sampling, {counted(len(reports), 'round')}\n",
        "\n".join(
            f"- Round {report.number}: {' '.join([verdict(report), *remarks(report)])}"
            for report in reports
        )
        + "\n",
        "Fresh answers of each policy, and what it had learned from:\n",
        markdown(names, rows),
        "![](overview.png)\n" if sets else "",
        "How the numbers are to be read is said at the end of each round's report.\n",
    ]
    return "\n".join(part for part in parts if part.strip())


def terminal_table(report: RoundReport) -> Table:
    """The answers before and after, for a console."""
    learned = report.decisions.get(selection.SELECTED, 0)
    candidates = counted(sum(report.decisions.values()), "candidate")
    below = [f"{remark}\n" for remark in remarks(report)]
    table = Table(
        title=f"Round {report.number}: {verdict(report)}",
        title_justify="left",
        caption="".join(below) + f"{learned:,} of {candidates} learned; ± is the standard error",
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
    """Rows of what it is, before, after and the change."""
    rows = set_rows([report.before, report.after], brief=brief)
    if report.before is None or report.after is None:
        return [[*row, ""] for row in rows]
    specs = {label: (field, spec) for field, label, spec in METRICS}
    return [[*row, _moved(report, *specs[row[0]])] for row in rows]


def set_rows(
    sets: Sequence[AnswerSet | None], *, brief: bool = False, leave_out: Sequence[str] = ()
) -> list[list[str]]:
    """A row for each metric that one of the sets has, a column for each set.

    Args:
        sets: The columns.
        brief: As in `cell`.
        leave_out: Fields of `AnswerSet`.
    """
    rows = []
    for field, label, spec in METRICS:
        if field in leave_out:
            continue
        values = [getattr(found, field) if found else None for found in sets]
        cells = [
            # Without its error, a number that cannot be would pass for one that can.
            cell(value, spec, brief=brief and not _is_negative_kl(field, value))
            for value in values
        ]
        if any(cells):
            rows.append([label, *cells])
    return rows


def markdown(
    names: Sequence[str], rows: Sequence[Sequence[str]], *, texts: Sequence[int] = (0,)
) -> str:
    """A table, its columns of text to the left, those of numbers to the right; "" for no row."""
    if not rows:
        return ""
    marks = [":--" if place in texts else "--:" for place in range(len(names))]
    lines = [names, marks, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def cell(value: object, spec: str, *, brief: bool = False) -> str:
    """A value as a table has it; "" for None.

    Args:
        value: A number, an estimate, or a tuple of numbers.
        spec: Format of each number.
        brief: Estimates without their errors, and no tuples: for a narrow terminal.
    """
    if value is None or (brief and isinstance(value, tuple)):
        return ""
    if isinstance(value, tuple):
        return " / ".join(_number(item, spec) for item in value)
    if not isinstance(value, Estimate):
        return _number(value, spec)
    if brief or value.error is None:
        return _number(value.mean, spec)
    return f"{_number(value.mean, spec)} ± {_number(value.error, spec.lstrip('+'))}"


def _number(value: float, spec: str) -> str:
    """A number as a table has it: no NaN, and no zero with a minus."""
    if math.isnan(value):
        return "undefined"
    text = f"{value:{spec}}"
    return text.removeprefix("-") if not text.strip("-0.%") else text


def _moved(report: RoundReport, field: str, spec: str) -> str:
    """The change of a metric; with its error where it was taken prompt by prompt."""
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


def _from_to(old: float, new: float, spec: str) -> str:
    return f"{old:{spec}} -> {new:{spec}}"


def _with_interval(change: Estimate, spec: str) -> str:
    if change.interval is None:
        return f"{change.mean:{spec}}"
    low, high = change.interval
    return f"{change.mean:{spec}} (95% interval {low:{spec}} to {high:{spec}})"
