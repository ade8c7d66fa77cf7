"""The report of one round, section by section."""

import html
from collections.abc import Iterable, Sequence

import numpy as np

from megatron_chimed.observe.intervals import wilson_interval
from megatron_chimed.rejection import selection
from megatron_chimed.rejection.candidate import Candidate
from megatron_chimed.rejection.report.measures import best_of_n_kl, doublings
from megatron_chimed.rejection.report.summary import RoundReport
from megatron_chimed.rejection.report.tables import (
    NOTES,
    asked,
    cell,
    comparison,
    costs,
    counted,
    markdown,
    set_rows,
    verdict,
)

PICTURES = ("rewards", "best_of_n", "length_reward")
NAMED_PROMPTS = 5
MANY_PROMPTS = 1000  # at least: an interval is at most 3 points to each side
QUOTED_CHARACTERS = 500
MEANINGS = {
    "": "not decided on",
    selection.UNFINISHED: "cut off at the longest length",
    selection.TOO_SHORT: "shorter than `min_tokens`, or without visible text",
    selection.TOO_LONG: "longer than `max_tokens`",
    selection.TOO_LONG_TO_TRAIN: "with its prompt longer than training's `seq_length`",
    selection.UNSCORED: "the reward model cannot take it",
    selection.DUPLICATE: "a better answer to the prompt says the same",
    selection.NEAR_DUPLICATE: "a better answer to the prompt says nearly the same",
    selection.LOW_SCORE: "score below `min_score`",
    selection.LOW_LEAD: "lead over the prompt's mean below `min_lead`",
    selection.NOT_IN_PROMPT_TOP: "not among the prompt's best `per_prompt`",
    selection.OVER_QUOTA: "the category's quota is full",
    selection.NOT_IN_TOTAL_TOP: "not among the best `total` of all",
    selection.SELECTED: "learned",
}


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
        before: The answers before the round, for quotations.
        after: The same after it.
        pictures: Names of the pictures beside it.
    """
    shown = {name: f"![]({name}.png)\n" if name in pictures else "" for name in PICTURES}
    change = report.change
    moved = (
        f"Better on {_share(change.improved, change.reward.prompts)} of the prompts, worse on "
        f"{_share(change.worsened, change.reward.prompts)}. The "
        "reward model prefers an answer after to one before with probability "
        f"{change.preferred:.2f}."
        if change
        else ""
    )
    parts = [
        f"# Round {report.number}\n",
        f"**{verdict(report)}**\n",
        "\n".join(f"- {line}" for line in costs(report)) + "\n",
        "## Answers before and after\n",
        f"To {asked(report)}s by the policy before the round and the one after it. {moved}\n",
        markdown(("", "before", "after", "change"), comparison(report)),
        shown["rewards"],
        "## Candidates and what is learned of them\n",
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
    """A share of prompts, with its interval where they are few."""
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
    return markdown(("written by", "candidates", "mean score", "learned", "of its own"), rows)


def _chosen(report: RoundReport) -> str:
    sets = {"policy's candidates": report.candidates, "selected": report.selected}
    sets = {name: answers for name, answers in sets.items() if answers is not None}
    # Of different size: see `measures.distinct`.
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
    names = ("n", "expected best score", "more than one draw", "KL to the policy at most, nats")
    return (
        "## What more candidates bring\n\n"
        "The best of n candidates of the policy, over "
        f"{counted(report.best_of_n_prompts, 'prompt')}:\n\n" + markdown(names, rows)
    )


def _length_reward(report: RoundReport) -> str:
    if report.length_reward is None:
        return ""
    within = report.length_reward_within
    told = "" if within is None else f", and {within:+.2f} among the answers to one prompt"
    return (
        "## Length and score\n\n"
        f"Of the policy's candidates, length and score correlate with {report.length_reward:+.2f} "
        f"(Spearman){told}. Where the latter is far from 0, selection chooses by length, too, and "
        "a part of the gain may be nothing else.\n"
    )


def _skipped(report: RoundReport) -> str:
    if not report.skipped:
        return ""
    rows = [[f"`{reason}`", f"{len(ids):,}", _named(ids)] for reason, ids in report.skipped.items()]
    return "## Prompts that took no part\n\n" + markdown(
        ("reason", "prompts", "which"), rows, texts=(0, 2)
    )


def _named(ids: Sequence[str]) -> str:
    named = ", ".join(_escaped(name) for name in ids[:NAMED_PROMPTS])
    return named + (", ..." if len(ids) > NAMED_PROMPTS else "")


def _quotations(before: Sequence[Candidate], after: Sequence[Candidate]) -> str:
    """The prompts whose first answers gained most, least and middlingly."""
    old, new = _first_answers(before), _first_answers(after)
    gains = {prompt: new[prompt].score - old[prompt].score for prompt in old if prompt in new}
    ranked = sorted(gains, key=gains.__getitem__)
    if not ranked:
        return ""
    places = {"Largest gain": -1, "Least gain": 0, "In the middle": len(ranked) // 2}
    parts = ["## Answers to read\n"]
    for title, place in [*places.items()][: len(ranked)]:
        prompt = ranked[place]
        first, second = old[prompt], new[prompt]
        parts += [
            f"### {title}: {_escaped(first.prompt_id)}, {gains[prompt]:+.3f}\n",
            f"Asked:\n\n{_block(first.question)}\n",
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


def _quoted(title: str, answer: Candidate) -> str:
    quoted = _block(answer.text)
    return (
        f"{title}, score {answer.score:.3f}, {counted(answer.num_tokens, 'token')}:\n\n{quoted}\n"
    )


def _block(text: str) -> str:
    shown = text[:QUOTED_CHARACTERS] + (" [...]" if len(text) > QUOTED_CHARACTERS else "")
    return "\n".join(f"> {line}" for line in html.escape(shown, quote=False).splitlines()) or ">"


def _escaped(name: str) -> str:
    """A name of the user's, in a cell of a table."""
    return html.escape(" ".join(name.split()), quote=False).replace("|", "\\|")
