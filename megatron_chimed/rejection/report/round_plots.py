"""Plots of a round and of all rounds, PNG."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from megatron_chimed.files import atomic_file
from megatron_chimed.rejection.candidate import POLICY, Candidate
from megatron_chimed.rejection.report.metrics import (
    Estimate,
    best_of_n_kl,
    doublings,
)
from megatron_chimed.rejection.report.round_report import (
    AnswerSet,
    RoundReport,
    by_prompt,
    differences,
    policies,
)
from megatron_chimed.rejection.selection_rules import SELECTED

OLD, NEW, CHOSEN = "tab:gray", "tab:blue", "tab:orange"
MOST_POINTS = 4000
MOST_BINS, MOST_BANDS = 40, 12


def plot_rewards(
    png: str | os.PathLike, *, before: Sequence[Candidate], after: Sequence[Candidate]
) -> None:
    """Plots the scores of fresh answers, and the change for each prompt.

    Args:
        png: The picture, replaced atomically.
        before: Answers of the policy before the round; at least one prompt has a score in both.
        after: Answers of the policy after it.
    """
    figure = _figure(10, 4.2)
    left, right = figure.subplots(1, 2)
    sets = [
        (name, color, np.concatenate([*by_prompt(answers, "score").values()]))
        for name, color, answers in (("before", OLD, before), ("after", NEW, after))
    ]
    bins = _bins(np.concatenate([values for _, _, values in sets]))
    for name, color, values in sets:
        mean, weights = values.mean(), np.full(len(values), 100 / len(values))
        left.hist(values, bins, weights=weights, color=color, alpha=0.5)
        left.axvline(mean, color=color, linewidth=2, label=f"{name}, mean {mean:.3f}")
    left.set(xlabel="score of a fresh answer", ylabel="answers, %")
    gains = differences(before, after, "score")
    right.hist(gains, _bins(gains), weights=np.full(len(gains), 100 / len(gains)), color=NEW)
    right.axvline(0, color="black", linewidth=1)
    label = f"mean {gains.mean():+.3f}"
    right.axvline(gains.mean(), color=CHOSEN, linewidth=2, label=label)
    right.set(xlabel="score after - score before, same prompt", ylabel="prompts, %")
    for axes in (left, right):
        _legend_above(axes)
    _save(figure, png)


def plot_best_of_n(png: str | os.PathLike, curve: Sequence[float]) -> None:
    """Plots the gain from more candidates, with its upper bound on the KL to the policy.

    Args:
        png: The picture, replaced atomically.
        curve: Expected best score of 1, 2, ... candidates.
    """
    figure = _figure(6.5, 4.6)
    axes = figure.subplots()
    axes.plot(range(1, len(curve) + 1), curve, color=NEW, marker="o", markersize=4)
    marks = doublings(len(curve))
    axes.set_xscale("log", base=2)
    axes.set_xticks(marks, [str(n) for n in marks])
    axes.minorticks_off()
    axes.set(xlabel="candidates to a prompt, n", ylabel="expected best score")
    top = axes.secondary_xaxis("top")
    top.set_xticks(marks, [f"{kl:.2f}" for kl in best_of_n_kl(np.array(marks))])
    top.minorticks_off()
    top.set_xlabel("KL(best of n || policy) at most, nats")
    _save(figure, png)


def plot_length_reward(png: str | os.PathLike, candidates: Sequence[Candidate]) -> None:
    """Plots length against score of the policy's candidates, and which are selected.

    Args:
        png: The picture, replaced atomically.
        candidates: At least one of the policy's has a score; of many, an even sample is shown.
    """
    drawn = [item for item in candidates if item.source == POLICY and item.score is not None]
    lengths = np.array([item.num_tokens for item in drawn])
    scores = np.array([item.score for item in drawn])
    chosen = np.array([item.decision == SELECTED for item in drawn])
    figure = _figure(7, 4.6)
    axes = figure.subplots()
    shown = np.zeros(len(drawn), bool)
    shown[:: -(-len(drawn) // MOST_POINTS)] = True
    size = float(np.clip(20_000 / shown.sum(), 9, 30))
    sets = (("not selected", OLD, shown & ~chosen), ("selected", CHOSEN, shown & chosen))
    for name, color, here in sets:
        axes.scatter(lengths[here], scores[here], size, color, alpha=0.5, lw=0, label=name)
    middles, medians = _running_median(lengths, scores)
    axes.plot(middles, medians, color=NEW, linewidth=2, marker=".", label="median score")
    axes.set(xlabel="tokens of the answer", ylabel="score by the reward model")
    _legend_above(axes)
    _save(figure, png)


def plot_overview(png: str | os.PathLike, reports: Sequence[RoundReport]) -> None:
    """Plots reward, KL, entropy and length of fresh answers by round.

    Args:
        png: The picture, replaced atomically.
        reports: In the order of the rounds; at least one has answers.
    """
    figure = _figure(10, 6.5)
    sets = policies(reports)
    panels: Sequence[tuple[str, Callable[[AnswerSet], Estimate | None]]] = (
        ("mean score by the reward model", lambda found: found.reward),
        ("KL to the first policy, nats/answer", lambda found: found.kl),
        ("entropy, nats/token", lambda found: found.entropy),
        ("tokens per answer", lambda found: found.tokens),
    )
    for axes, (label, read) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        values = {number: read(found) for number, found in sets.items()}
        measured = {number: value for number, value in values.items() if value}
        errors = [value.error or 0.0 for value in measured.values()]
        means = [value.mean for value in measured.values()]
        axes.errorbar(list(measured), means, errors, color=NEW, marker="o", capsize=3)
        axes.set(xlabel="rounds of training", ylabel=label)
        axes.set_xticks(list(sets))
        if not measured:
            axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)
    figure.suptitle("Fresh answers by round, with standard errors")
    _save(figure, png)


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _legend_above(axes: Any) -> None:
    """Above the axes, where it hides nothing."""
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3, markerscale=2)


def _save(figure: Any, png: str | os.PathLike) -> None:
    for axes in figure.axes:
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    with atomic_file(png) as temporary:
        figure.savefig(temporary, format="png")


def _bins(values: np.ndarray) -> np.ndarray:
    """Bin edges, with fewer bins for fewer values."""
    return np.histogram_bin_edges(values, min(MOST_BINS, max(5, int(1.5 * len(values) ** 0.5))))


def _running_median(lengths: np.ndarray, scores: np.ndarray) -> tuple[list[float], list[float]]:
    """Median length and score in bands of equal size; bands of equal median length are merged."""
    order = np.argsort(lengths, kind="stable")
    bands: dict[float, list[np.ndarray]] = {}
    for band in np.array_split(order, min(MOST_BANDS, max(1, len(order) // 10))):
        bands.setdefault(float(np.median(lengths[band])), []).append(scores[band])
    return [*bands], [float(np.median(np.concatenate(parts))) for parts in bands.values()]
