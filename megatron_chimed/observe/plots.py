"""The loss curve as a PNG, drawn from `metrics.jsonl` alone, so it can be redrawn at any time."""

import math
import os
from collections.abc import Sequence
from typing import Any

from megatron_chimed.errors import DataError
from megatron_chimed.observe.figures import FEW_STEPS, make_figure, save_figure, whole_steps
from megatron_chimed.observe.intervals import wilson_interval
from megatron_chimed.observe.metrics import read_metrics

SMOOTHING_FRACTION = 0.02
"""Width of the smoothing window as a share of the run."""
PREFERENCES = {"accuracy": "pairs ranked correctly", "margin": "margin"}
"""Metrics of reward models and DPO that get axes of their own, and the axes' labels."""


def write_loss_curve(metrics: str | os.PathLike, png: str | os.PathLike) -> bool:
    """Plots training loss (raw and smoothed), validation loss and, below, the learning rate.

    Between them, for reward models and DPO: the share of pairs ranked correctly, with 95 % Wilson
    intervals, and the mean margin of the better answer, in training and validation.

    Args:
        metrics: A `metrics.jsonl`.
        png: The picture (1500 x 900 pixels, 1500 x 1500 with preferences), replaced atomically.

    Returns:
        True, like the other plots that may have nothing to draw.

    Raises:
        DataError: The file has no train event.
    """
    events = read_metrics(metrics)
    train = [event for event in events if event["kind"] == "train"]
    valid = [event for event in events if event["kind"] == "valid"]
    if not train:
        raise DataError(f"{metrics} has no train event, so there is no loss to draw.")
    shown = [name for name in PREFERENCES if any(name in event for event in train)]
    figure = make_figure(10, 6 + 2 * len(shown))
    heights = [4, *[2] * len(shown), 1]
    loss_axes, *others, rate_axes = figure.subplots(
        len(heights), 1, sharex=True, gridspec_kw={"height_ratios": heights}
    )
    _draw_training(loss_axes, train)
    _draw_validation(loss_axes, valid)
    _draw_restarts(loss_axes, [event for event in events if event["kind"] == "start"])
    loss_axes.set_ylabel("loss")
    _legend_above(loss_axes)
    for axes, name in zip(others, shown, strict=True):
        _draw_preference(axes, name, train, valid)
    rates, marker = _column(train, "learning_rate"), "." if len(train) < FEW_STEPS else ""
    rate_axes.plot(_column(train, "step"), rates, color="tab:green", marker=marker)
    rate_axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    rate_axes.set(xlabel="step", ylabel="learning rate", ylim=(0, None))
    whole_steps(rate_axes, [event["step"] for event in train + valid])
    save_figure(figure, png)
    return True


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Centred running mean over `window` (odd) values: no lag, and shorter windows at the ends.

    Values that are not finite are left out; NaN where a window has none left.
    """
    sums, counts = [0.0], [0]
    for value in values:
        finite = math.isfinite(value)
        sums.append(sums[-1] + (value if finite else 0.0))
        counts.append(counts[-1] + finite)
    result = []
    for index in range(len(values)):
        low, high = max(0, index - window // 2), min(len(values), index + window // 2 + 1)
        count = counts[high] - counts[low]
        result.append((sums[high] - sums[low]) / count if count else math.nan)
    return result


def _draw_training(axes: Any, train: list[dict[str, Any]]) -> None:
    _draw_smoothed(axes, _column(train, "step"), _column(train, "loss"))
    skipped = [event["step"] for event in train if event["skipped"]]
    if skipped:
        axes.plot(
            skipped,
            [0.01] * len(skipped),
            "|",
            color="tab:red",
            label=f"skipped ({len(skipped)} steps)",
            transform=axes.get_xaxis_transform(),
        )


def _draw_smoothed(axes: Any, steps: list[float], values: list[float]) -> None:
    """Values of training steps and, if there are many, their running mean."""
    window = int(len(values) * SMOOTHING_FRACTION) // 2 * 2 + 1
    if window > 1:
        axes.plot(steps, values, color="tab:blue", alpha=0.3, linewidth=0.8, label="training")
        label = f"training, mean of {window} steps"
        axes.plot(steps, smooth(values, window), color="tab:blue", linewidth=1.8, label=label)
    else:
        axes.plot(steps, values, color="tab:blue", marker=".", label="training")


def _draw_preference(
    axes: Any, name: str, train: list[dict[str, Any]], valid: list[dict[str, Any]]
) -> None:
    """Draws a metric of pairs; steps without a pair have no value."""
    train, valid = ([event for event in events if name in event] for events in (train, valid))
    _draw_smoothed(axes, _column(train, "step"), _column(train, name))
    if valid:
        steps, values, errors = _column(valid, "step"), _column(valid, name), None
        label = f"validation, last {values[-1]:.3f}"
        if name == "accuracy" and all("pairs" in event for event in valid):
            errors = _distances(valid)
            label += f" of {valid[-1]['pairs']:,} pairs, 95% Wilson intervals"
        axes.errorbar(
            steps,
            values,
            errors,
            color="tab:orange",
            marker="o",
            markersize=4,
            capsize=3,
            label=label,
        )
    nothing = 0.5 if name == "accuracy" else 0.0
    axes.axhline(nothing, color="gray", linestyle=":", linewidth=1)
    axes.set_ylabel(PREFERENCES[name])
    if name == "accuracy":
        axes.set_ylim(-0.02, 1.02)
    _legend_above(axes)


def _distances(valid: list[dict[str, Any]]) -> list[list[float]]:
    """Distances from accuracies to the ends of their intervals, below and above."""
    below, above = [], []
    for event in valid:
        share, pairs = event["accuracy"], event["pairs"]
        low, high = wilson_interval(round(share * pairs), pairs)
        below.append(max(0.0, share - low))
        above.append(max(0.0, high - share))
    return [below, above]


def _draw_validation(axes: Any, valid: list[dict[str, Any]]) -> None:
    finite = [event for event in valid if math.isfinite(event["loss"])]
    if not finite:
        return
    best = min(finite, key=lambda event: event["loss"])
    label = f"validation, best {best['loss']:.4f} at step {best['step']}"
    steps, losses = _column(finite, "step"), _column(finite, "loss")
    axes.plot(steps, losses, color="tab:orange", marker="o", markersize=4, label=label)


def _draw_restarts(axes: Any, starts: list[dict[str, Any]]) -> None:
    resumed = sorted({event["step"] for event in starts if event["step"] > 0})
    for number, step in enumerate(resumed):
        label = "resumed" if number == 0 else None
        axes.axvline(step, color="gray", linestyle=":", linewidth=1, label=label)


def _legend_above(axes: Any) -> None:
    """Puts the legend above the axes: finding a free spot inside takes seconds on a long run."""
    axes.legend(
        frameon=False, fontsize="small", loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=5
    )


def _column(events: list[dict[str, Any]], name: str) -> list[float]:
    return [event[name] for event in events]
