"""Plots the losses of a blend's sources, legible with two sources and with hundreds."""

import math
import os
from typing import Any

from megatron_chimed.observe.figures import make_figure, save_figure, whole_steps
from megatron_chimed.observe.metrics import read_metrics
from megatron_chimed.observe.sinks import SOURCES
from megatron_chimed.observe.sources import losses_of, shorten

MAX_NAMED = 10
MAX_BARS = 40

Curves = dict[str, list[tuple[int, float]]]


def write_source_losses(metrics: str | os.PathLike, png: str | os.PathLike) -> bool:
    """Plots the loss of each source over the steps, and its last value.

    With more than 10 sources, the 5 worst and the 5 best are named; the others are thin lines, with
    the median. Solid: training; dotted with markers: validation.

    Args:
        metrics: A `metrics.jsonl`.
        png: The picture (1800 x 900 pixels), replaced atomically.

    Returns:
        Whether there was a source to draw.
    """
    events = read_metrics(metrics)
    train = _curves([event for event in events if event["kind"] == SOURCES])
    valid = _curves([event for event in events if event["kind"] == "valid"])
    if not train:
        return False
    last = {name: points[-1][1] for name, points in (train | valid).items()}
    ranked = sorted(last, key=last.__getitem__, reverse=True)
    named = ranked
    if len(ranked) > MAX_NAMED:
        named = ranked[: MAX_NAMED // 2] + ranked[-(MAX_NAMED // 2) :]
    figure = make_figure(12, 6)
    left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": [3, 1]})
    colors = dict(zip(named, _palette(len(named)), strict=True))
    _draw_curves(left, train, valid, colors)
    whole_steps(left, [step for curves in (train, valid) for p in curves.values() for step, _ in p])
    # Validation sources may have names of their own.
    kinds = [kind for kind, curves in (("validation", valid), ("training", train)) if curves]
    kind = kinds[0] if valid.keys() >= train.keys() or not valid else " or ".join(kinds)
    _draw_ends(right, last, ranked, colors, kind)
    save_figure(figure, png)
    return True


def _curves(events: list[dict[str, Any]]) -> Curves:
    curves: Curves = {}
    for event in events:
        for name, loss in losses_of(event).items():
            if math.isfinite(loss):
                curves.setdefault(name, []).append((event["step"], loss))
    return curves


def _palette(size: int) -> list[Any]:
    from matplotlib import colormaps

    return [colormaps["tab10"](number) for number in range(size)]


def _draw_curves(axes: Any, train: Curves, valid: Curves, colors: dict[str, Any]) -> None:
    others = [name for name in train if name not in colors]
    for name in others:
        axes.plot(*zip(*train[name], strict=True), color="gray", alpha=0.15, linewidth=0.6)
    if others:
        medians = _medians({name: train[name] for name in train})
        label = f"median of {len(train)} sources"
        axes.plot(*zip(*medians, strict=True), color="black", linewidth=2, label=label)
    for name, color in colors.items():
        for curves, style, marker in ((train, "-", "."), (valid, ":", "o")):
            if name in curves:
                points = [*zip(*curves[name], strict=True)]
                label = None if curves is valid and name in train else shorten(name)
                axes.plot(
                    *points, color=color, linestyle=style, marker=marker, markersize=4, label=label
                )
    axes.set(xlabel="step", ylabel="loss")
    # Above the axes, where it hides no curve.
    axes.legend(
        frameon=False, fontsize="small", loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3
    )


def _medians(curves: Curves) -> list[tuple[int, float]]:
    by_step: dict[int, list[float]] = {}
    for points in curves.values():
        for step, loss in points:
            by_step.setdefault(step, []).append(loss)
    return [(step, sorted(found)[len(found) // 2]) for step, found in sorted(by_step.items())]


def _draw_ends(
    axes: Any, last: dict[str, float], ranked: list[str], colors: dict[str, Any], part: str
) -> None:
    """Bars from the best to the worst; unnamed dots if there are too many."""
    values = [last[name] for name in reversed(ranked)]
    shades = [colors.get(name, "silver") for name in reversed(ranked)]
    if len(ranked) > MAX_BARS:
        axes.scatter(values, range(1, len(values) + 1), 12, shades)
        axes.set_ylabel(f"{len(ranked)} sources, best to worst")
    else:
        axes.barh([shorten(name) for name in reversed(ranked)], values, color=shades)
        axes.tick_params(axis="y", labelsize="small")
    axes.set(xlabel=f"last {part} loss")
