"""The numbers of a round: fresh answers before and after, candidates and decisions."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_chimed.rejection.candidate import POLICY, Candidate
from megatron_chimed.rejection.report.metrics import (
    Estimate,
    best_of_n,
    distinct,
    mean_over_prompts,
    self_similarity,
    spearman,
    spearman_within,
    unique_share,
)
from megatron_chimed.rejection.selection_rules import SELECTED, count_decisions

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True, kw_only=True)
class AnswerSet:
    """Statistics of a set of answers; None where they are undefined."""

    prompts: int
    """Number of prompts with an answer."""
    answers: int
    """Number of answers."""
    reward: Estimate | None
    """Mean score."""
    reward_quantiles: tuple[float, ...] | None
    """Scores at `QUANTILES`."""
    tokens: Estimate
    """Mean length in tokens."""
    unfinished: float
    """Share of answers that reached `max_new_tokens` without ending."""
    distinct_1: float | None
    """Different tokens divided by tokens."""
    distinct_2: float | None
    """Different token pairs divided by tokens."""
    unique: float
    """Different texts divided by texts."""
    similarity: float | None
    """Mean similarity of the answers to a prompt."""
    entropy: Estimate | None
    """Entropy of the policy that drew them, nats per token: the mean of -log p. Unlike `distinct`
    it does not depend on the length of answers."""
    kl: Estimate | None
    """KL(policy that drew them || policy before the first round), nats per answer."""
    kl_per_token: Estimate | None
    """KL divided by the number of tokens."""


@dataclass(frozen=True, kw_only=True)
class ScoreChange:
    """Change from before to after on the same prompts, so that prompt difficulty cancels.

    Source: Bradley and Terry, Rank Analysis of Incomplete Block Designs (1952), in whose model
    only differences of scores have a meaning: log odds of a preference.
    """

    reward: Estimate
    """Change of the mean score."""
    tokens: Estimate
    """Change of the mean length in tokens."""
    improved: float
    """Share of prompts whose mean score rose."""
    worsened: float
    """Share of prompts whose mean score fell."""
    preferred: float
    """Probability that the reward model prefers an answer after to one before: mean of
    sigmoid(score after - score before) over pairs, then prompts."""


@dataclass(frozen=True, kw_only=True)
class SourceShare:
    """Candidates of one source."""

    answers: int
    """Number of candidates."""
    reward: float | None
    """Their mean score."""
    selected: int
    """Number of selected candidates."""


@dataclass(frozen=True, kw_only=True)
class RoundReport:
    """All numbers of a round."""

    number: int
    """Number of the round, from 1."""
    held_out: bool
    """Whether no round trains on the prompts of `before` and `after`."""
    before: AnswerSet | None
    """Fresh answers by the policy before the round."""
    after: AnswerSet | None
    """Fresh answers by the policy after it."""
    change: ScoreChange | None
    """Change between the two."""
    candidates: AnswerSet | None
    """The candidates that the policy drew."""
    selected: AnswerSet | None
    """The selected candidates of all sources."""
    sources: Mapping[str, SourceShare]
    """By the name of the source."""
    decisions: Mapping[str, int]
    """Number of candidates by decision."""
    best_of_n: tuple[float, ...]
    """Expected best score of 1, 2, ... of the policy's candidates."""
    best_of_n_prompts: int
    """Number of prompts that `best_of_n` is measured on."""
    length_reward: float | None
    """Spearman correlation of length and score of the policy's candidates."""
    length_reward_within: float | None
    """The same within prompts, where selection can exploit it."""
    skipped: Mapping[str, tuple[str, ...]]
    """Ids of skipped prompts, by reason."""

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "RoundReport":
        """The inverse of `plain`, from JSON values."""
        sets = {name: _read_set(plain[name]) for name in SETS}
        change = plain["change"] and _read(ScoreChange, plain["change"], ("reward", "tokens"))
        return cls(
            **{
                **plain,
                **sets,
                "change": change,
                "sources": {k: SourceShare(**v) for k, v in plain["sources"].items()},
                "best_of_n": tuple(plain["best_of_n"]),
                "skipped": {reason: tuple(ids) for reason, ids in plain["skipped"].items()},
            }
        )


SETS = ("before", "after", "candidates", "selected")
ESTIMATES = ("reward", "tokens", "entropy", "kl", "kl_per_token")


def measure_round(
    number: int,
    *,
    candidates: Sequence[Candidate],
    before: Sequence[Candidate],
    after: Sequence[Candidate],
    skipped: Mapping[str, Sequence[str]],
    held_out: bool = True,
) -> RoundReport:
    """Measures a round.

    Args:
        number: Of the round, from 1.
        candidates: All candidates of the round, scored and selected.
        before: Scored fresh answers by the policy that drew the candidates.
        after: The same by the policy that was trained on them, to the same prompts.
        skipped: Reason -> ids of skipped prompts.
        held_out: Whether no round trains on the prompts of `before` and `after`.
    """
    drawn = [item for item in candidates if item.source == POLICY]
    scored = [item for item in drawn if item.score is not None]
    prompts = [item.prompt for item in scored]
    scores = np.array([item.score for item in scored])
    lengths = np.array([item.num_tokens for item in scored])
    groups = [np.array(found) for found in by_prompt(scored, "score").values()]
    curve = best_of_n(groups)
    return RoundReport(
        number=number,
        held_out=held_out,
        before=measure_answers(before),
        after=measure_answers(after),
        change=_change(before, after),
        candidates=measure_answers(drawn),
        selected=measure_answers([c for c in candidates if c.decision == SELECTED], drawn=False),
        sources=_sources(candidates),
        decisions=count_decisions(candidates),
        best_of_n=tuple(curve.tolist()),
        best_of_n_prompts=sum(len(found) == len(curve) for found in groups),
        length_reward=spearman(lengths, scores),
        length_reward_within=spearman_within(prompts, lengths, scores),
        skipped={reason: tuple(ids) for reason, ids in skipped.items() if ids},
    )


def policies(reports: Sequence[RoundReport]) -> Mapping[int, AnswerSet]:
    """Fresh answers by the number of rounds that their policy was trained for."""
    found = {report.number - 1: report.before for report in reports[:1]}
    found |= {report.number: report.after for report in reports}
    return {number: answers for number, answers in found.items() if answers is not None}


def measure_answers(answers: Sequence[Candidate], *, drawn: bool = True) -> AnswerSet | None:
    """Measures a set of answers; None for none.

    Args:
        answers: Scored or not.
        drawn: Whether they are all answers that a policy drew. A selection of them does not
            represent its entropy or its KL to another policy.
    """
    if not answers:
        return None
    prompts = [item.prompt for item in answers]
    scored = [item for item in answers if item.score is not None]
    scores = np.array([item.score for item in scored])
    measured = [(item, item.log_prob) for item in answers if drawn and item.log_prob is not None]
    compared = [
        (item, log_prob - item.first_log_prob)
        for item, log_prob in measured
        if item.first_log_prob is not None
    ]
    owners = [item.prompt for item, _ in compared]
    gaps = np.array([gap for _, gap in compared])
    return AnswerSet(
        prompts=len(set(prompts)),
        answers=len(answers),
        reward=_mean([item.prompt for item in scored], scores),
        reward_quantiles=tuple(np.quantile(scores, QUANTILES).tolist()) if scored else None,
        tokens=mean_over_prompts(prompts, np.array([item.num_tokens for item in answers])),
        unfinished=sum(item.finish_reason == "length" for item in answers) / len(answers),
        distinct_1=distinct((item.token_ids for item in answers), 1),
        distinct_2=distinct((item.token_ids for item in answers), 2),
        unique=unique_share([item.text for item in answers]),
        similarity=self_similarity(by_prompt(answers, "text").values()),
        entropy=_mean(
            [item.prompt for item, _ in measured],
            np.array([-log_prob for _, log_prob in measured]),
            _drawn_tokens([item for item, _ in measured]),
        ),
        kl=_mean(owners, gaps),
        kl_per_token=_mean(owners, gaps, _drawn_tokens([item for item, _ in compared])),
    )


def _drawn_tokens(answers: Sequence[Candidate]) -> np.ndarray:
    """Length of each answer with its stop token, whose probability counts too."""
    return np.array([item.num_tokens + (item.finish_reason == "stop") for item in answers])


def _mean(
    prompts: Sequence[int], values: np.ndarray, weights: np.ndarray | None = None
) -> Estimate | None:
    return mean_over_prompts(prompts, values, weights) if prompts else None


def by_prompt(answers: Iterable[Candidate], name: str) -> dict[int, list[Any]]:
    """The values of one field by prompt, without None."""
    found: dict[int, list[Any]] = {}
    for item in answers:
        if (value := getattr(item, name)) is not None:
            found.setdefault(item.prompt, []).append(value)
    return found


def differences(old: Iterable[Candidate], new: Iterable[Candidate], name: str) -> np.ndarray:
    """Change of a field's mean for each prompt that has it in both."""
    first, second = by_prompt(old, name), by_prompt(new, name)
    return np.array([np.mean(second[p]) - np.mean(first[p]) for p in first if p in second])


def _change(before: Sequence[Candidate], after: Sequence[Candidate]) -> ScoreChange | None:
    """None if no prompt has a score in both."""
    rewards, tokens = (differences(before, after, name) for name in ("score", "num_tokens"))
    if not len(rewards):
        return None
    return ScoreChange(
        reward=mean_over_prompts(range(len(rewards)), rewards),
        tokens=mean_over_prompts(range(len(tokens)), tokens),
        improved=float((rewards > 0).mean()),
        worsened=float((rewards < 0).mean()),
        preferred=_preferred(by_prompt(before, "score"), by_prompt(after, "score")),
    )


def _preferred(old: Mapping[int, list[float]], new: Mapping[int, list[float]]) -> float:
    leads = [np.subtract.outer(new[p], old[p]) for p in old if p in new]
    # tanh never overflows: sigmoid(x) = (1 + tanh(x/2)) / 2
    return float(np.mean([np.tanh(lead / 2).mean() for lead in leads]) / 2 + 0.5)


def _sources(candidates: Iterable[Candidate]) -> dict[str, SourceShare]:
    by_source: dict[str, list[Candidate]] = {}
    for item in candidates:
        by_source.setdefault(item.source, []).append(item)
    shares = {}
    for source, items in sorted(by_source.items(), key=lambda pair: (pair[0] != POLICY, pair[0])):
        scores = [item.score for item in items if item.score is not None]
        shares[source] = SourceShare(
            answers=len(items),
            reward=float(np.mean(scores)) if scores else None,
            selected=sum(item.decision == SELECTED for item in items),
        )
    return shares


def _read_set(plain: Mapping[str, Any] | None) -> AnswerSet | None:
    if plain is None:
        return None
    quantiles = plain["reward_quantiles"]
    fixed = {**plain, "reward_quantiles": None if quantiles is None else tuple(quantiles)}
    return _read(AnswerSet, fixed, ESTIMATES)


def _read(record: type, plain: Mapping[str, Any], names: Sequence[str]) -> Any:
    estimates = {name: plain[name] and Estimate(**plain[name]) for name in names}
    return record(**{**plain, **estimates})
