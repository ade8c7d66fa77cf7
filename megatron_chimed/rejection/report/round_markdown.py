"""The report of one round, Markdown, section by section."""

import html
from collections.abc import Iterable, Sequence

import numpy as np

from megatron_chimed.observe.intervals import wilson_interval
from megatron_chimed.rejection import selection_rules as selection
from megatron_chimed.rejection.candidate import Candidate
from megatron_chimed.rejection.report.conclusions import asked, costs, verdict
from megatron_chimed.rejection.report.formatting import cell, counted, markdown
from megatron_chimed.rejection.report.metrics import best_of_n_kl, doublings
from megatron_chimed.rejection.report.round_report import RoundReport
from megatron_chimed.rejection.report.tables import comparison, set_rows

PICTURES = ("rewards", "best_of_n", "length_reward")
NAMED_PROMPTS = 5
MANY_PROMPTS = 1000  # from here on an interval reaches at most 3 points to each side
QUOTED_CHARACTERS = 500
MEANINGS = {
    "": "not decided on",
    selection.UNFINISHED: "reached `candidates.max_new_tokens` without ending",
    selection.TOO_SHORT: "shorter than `min_tokens`, or without visible text",
    selection.TOO_LONG: "longer than `max_tokens`",
    selection.TOO_LONG_TO_TRAIN: "longer with its prompt than training's `seq_length`",
    selection.UNSCORED: "the reward model cannot score it",
    selection.DUPLICATE: "repeats a better answer to the prompt",
    selection.NEAR_DUPLICATE: "nearly repeats a better answer to the prompt",
    selection.LOW_SCORE: "score below `min_score`",
    selection.LOW_LEAD: "lead over the prompt's mean below `min_lead`",
    selection.NOT_IN_PROMPT_TOP: "outside the prompt's top `per_prompt`",
    selection.OVER_QUOTA: "the category's quota is full",
    selection.NOT_IN_TOTAL_TOP: "outside the overall top `total`",
    selection.SELECTED: "trained on",
}
NOTES = """\
## How to read the numbers

- A number after ± is the standard error. Each prompt counts as one observation, since answers to
  one prompt are alike; changes are measured per prompt, so that easy and hard prompts cancel.
  Intervals are 95% confidence intervals (Student's t).
- Scores are the reward model's, which training optimizes: read some answers before trusting a rise,
  especially if KL is large. A difference of x between two answers means that the reward model
  prefers the better one with probability 1 / (1 + exp(-x)).
- KL is the mean of log p(policy that drew the answer) - log p(first policy), where the first policy
  is the one before round 1. A KL divergence is never below 0, but its estimate from few answers can
  be: it is then shown with its standard error and a remark. KL and entropy are unbiased
  only for draws at temperature 1 without top-k, top-p or a repetition penalty; otherwise use them
  only to compare rounds.
- distinct-n is the number of different token n-grams divided by the number of tokens. It falls as a
  set of answers grows, so compare sets of similar size only; entropy does not depend on the size.
- Similarity is the share of common character 3-grams (1: equal), as in `selection.near_duplicate`;
  the first 4 answers to each prompt count.
- Spearman's correlation is between -1 (the longest answer scores lowest) and 1.
"""


def round_text(
    report: RoundReport,
    *,
    before: Sequence[Candidate],
    after: Sequence[Candidate],
    pictures: Sequence[str],
) -> str:
    """The report of a round, Markdown.

    Args:
        report: Its numbers.
        before: Fresh answers before the round, for quotations.
        after: Fresh answers after it.
        pictures: Names of the plots beside it.
    """
    shown = {name: f"![]({name}.png)\n" if name in pictures else "" for name in PICTURES}
    change = report.change
    moved = (
        f"Better on {_share(change.improved, change.reward.prompts)} of the prompts, worse on "
        f"{_share(change.worsened, change.reward.prompts)}. The "
        "reward model prefers an answer after the round to one before with probability "
        f"{change.preferred:.2f}."
        if change
        else ""
    )
    parts = [
        f"# Round {report.number}\n",
        f"**{verdict(report)}**\n",
        "\n".join(f"- {line}" for line in costs(report)) + "\n",
        "## Answers before and after\n",
        f"To {asked(report)}s, by the policies before and after the round. {moved}\n",
        markdown(("", "before", "after", "change"), comparison(report)),
        shown["rewards"],
        "## Candidates and decisions\n",
        _decisions(report),
        _sources(report),
        _chosen(report),
        _best_of_n(report),
        shown["best_of_n"],
        _length_reward(report),
        shown["length_reward"],
        _skipped(report),
        _quotations(before, after),
        NOTES,
    ]
    return "\n".join(part for part in parts if part.strip())


def _share(share: float, prompts: int) -> str:
    """A share of prompts, with its confidence interval if there are few."""
    if prompts >= MANY_PROMPTS:
        return f"{share:.1%}"
    low, high = wilson_interval(round(share * prompts), prompts)
    return f"{share:.1%} (95% interval {low:.0%} to {high:.0%})"


def _decisions(report: RoundReport) -> str:
    total = sum(report.decisions.values())
    rows = [
        [f"`{name or '-'}`", f"{count:,}", f"{count / total:.1%}", MEANINGS[name]]
        for name, count in report.decisions.items()
    ]
    return markdown(("decision", "candidates", "share", "because"), rows, texts=(0, 3))


def _sources(report: RoundReport) -> str:
    rows = [
        [
            _escaped(name),
            f"{share.answers:,}",
            cell(share.reward, ".3f"),
            f"{share.selected:,}",
            f"{share.selected / share.answers:.1%}",
        ]
        for name, share in report.sources.items()
    ]
    return markdown(("source", "candidates", "mean score", "selected", "share selected"), rows)


def _chosen(report: RoundReport) -> str:
    sets = {"policy's candidates": report.candidates, "selected": report.selected}
    sets = {name: answers for name, answers in sets.items() if answers is not None}
    # The sets differ in size: see `metrics.distinct`.
    rows = set_rows([*sets.values()], leave_out=("distinct_1", "distinct_2"))
    return markdown(("", *sets), rows)


def _best_of_n(report: RoundReport) -> str:
    curve = report.best_of_n
    if not curve:
        return ""
    marks = doublings(len(curve))
    kls = best_of_n_kl(np.array(marks))
    rows = [
        [str(n), f"{curve[n - 1]:.3f}", f"{curve[n - 1] - curve[0]:+.3f}", f"{kl:.2f}"]
        for n, kl in zip(marks, kls, strict=True)
    ]
    names = ("n", "expected best score", "gain over n = 1", "upper bound of KL to policy, nats")
    return (
        "## Gain from more candidates\n\n"
        "The best of n candidates of the policy, over "
        f"{counted(report.best_of_n_prompts, 'prompt')}:\n\n" + markdown(names, rows)
    )


def _length_reward(report: RoundReport) -> str:
    if report.length_reward is None:
        return ""
    within = report.length_reward_within
    within_text = "" if within is None else f", and {within:+.2f} within prompts"
    return (
        "## Length and score\n\n"
        f"Of the policy's candidates, length and score correlate with {report.length_reward:+.2f} "
        f"(Spearman){within_text}. If the latter is far from 0, selection also selects by "
        "length, which may explain part of the gain.\n"
    )


def _skipped(report: RoundReport) -> str:
    if not report.skipped:
        return ""
    rows = [[f"`{reason}`", f"{len(ids):,}", _named(ids)] for reason, ids in report.skipped.items()]
    return "## Skipped prompts\n\n" + markdown(("reason", "prompts", "which"), rows, texts=(0, 2))


def _named(ids: Sequence[str]) -> str:
    named = ", ".join(_escaped(name) for name in ids[:NAMED_PROMPTS])
    return named + (", ..." if len(ids) > NAMED_PROMPTS else "")


def _quotations(before: Sequence[Candidate], after: Sequence[Candidate]) -> str:
    """The prompts whose first answers gained most, least, and the median one."""
    old, new = _first_answers(before), _first_answers(after)
    gains = {prompt: _score(new[prompt]) - _score(old[prompt]) for prompt in old if prompt in new}
    ranked = sorted(gains, key=gains.__getitem__)
    if not ranked:
        return ""
    ranks = {"Largest gain": -1, "Least gain": 0, "Median gain": len(ranked) // 2}
    parts = ["## Answers to read\n"]
    for title, rank in [*ranks.items()][: len(ranked)]:
        prompt = ranked[rank]
        first, second = old[prompt], new[prompt]
        parts += [
            f"### {title}: {_escaped(first.prompt_id)}, {gains[prompt]:+.3f}\n",
            f"Question:\n\n{_block(first.question)}\n",
            _quoted("Before", first),
            _quoted("After", second),
        ]
    return "\n".join(parts)


def _first_answers(answers: Iterable[Candidate]) -> dict[int, Candidate]:
    """The first scored answer to each prompt."""
    found: dict[int, Candidate] = {}
    for item in answers:
        if item.score is not None:
            found.setdefault(item.prompt, item)
    return found


def _score(answer: Candidate) -> float:
    assert answer.score is not None, "only scored answers are quoted"
    return answer.score


def _quoted(title: str, answer: Candidate) -> str:
    quoted = _block(answer.text)
    return (
        f"{title}, score {answer.score:.3f}, {counted(answer.num_tokens, 'token')}:\n\n{quoted}\n"
    )


def _block(text: str) -> str:
    shown = text[:QUOTED_CHARACTERS] + (" [...]" if len(text) > QUOTED_CHARACTERS else "")
    return "\n".join(f"> {line}" for line in html.escape(shown, quote=False).splitlines()) or ">"


def _escaped(name: str) -> str:
    """A user's name for something, escaped for a table cell."""
    return html.escape(" ".join(name.split()), quote=False).replace("|", "\\|")
