"""The loss curve as a PNG, drawn from `metrics.jsonl` alone, so it can be redrawn at any time."""

import math
import os
from collections.abc import Sequence
from typing import Any

from megatron_chimed.errors import DataError
from megatron_chimed.files import atomic_file
from megatron_chimed.observe.metrics import read_metrics

SMOOTHING_FRACTION = 0.02
"""Width of the smoothing window as a share of the run."""


def write_loss_curve(metrics: str | os.PathLike, png: str | os.PathLike) -> None:
    """Draws training loss (raw and smoothed), validation loss and, below, the learning rate.

    Args:
        metrics: A `metrics.jsonl`.
        png: The picture (1500 x 900 pixels), replaced atomically.

    Raises:
        DataError: The file has no train event.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    events = read_metrics(metrics)
    train = [event for event in events if event["kind"] == "train"]
    if not train:
        raise DataError(f"{metrics} holds no train event, so there is no loss to draw.")
    figure = Figure(figsize=(10, 6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    loss_axes, rate_axes = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [4, 1]})
    _draw_training(loss_axes, train)
    _draw_validation(loss_axes, [event for event in events if event["kind"] == "valid"])
    _draw_restarts(loss_axes, [event for event in events if event["kind"] == "start"])
    loss_axes.set_ylabel("loss")
    loss_axes.legend(frameon=False)
    rates, marker = _column(train, "learning_rate"), "." if len(train) == 1 else ""
    rate_axes.plot(_column(train, "step"), rates, color="tab:green", marker=marker)
    rate_axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    rate_axes.set(xlabel="step", ylabel="learning rate", ylim=(0, None))
    for axes in (loss_axes, rate_axes):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    with atomic_file(png) as temporary:
        figure.savefig(temporary, format="png")


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
    steps, losses = _column(train, "step"), _column(train, "loss")
    window = int(len(losses) * SMOOTHING_FRACTION) // 2 * 2 + 1
    if window > 1:
        axes.plot(steps, losses, color="tab:blue", alpha=0.3, linewidth=0.8, label="training")
        label = f"training, mean of {window} steps"
        axes.plot(steps, smooth(losses, window), color="tab:blue", linewidth=1.8, label=label)
    else:
        axes.plot(steps, losses, color="tab:blue", marker=".", label="training")
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


def _column(events: list[dict[str, Any]], name: str) -> list[float]:
    return [event[name] for event in events]
