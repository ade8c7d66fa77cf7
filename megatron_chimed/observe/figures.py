"""Helpers for all figures of a run."""

import os
from collections.abc import Sequence
from typing import Any

from megatron_chimed.files import atomic_file

FEW_STEPS = 10  # below this, each step gets its own marker


def make_figure(width: float, height: float) -> Any:
    """A figure of this size in inches at 150 dots per inch, independent of any display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def whole_steps(axes: Any, steps: Sequence[int]) -> None:
    """Sets ticks at whole steps only, with a margin before the first and after the last."""
    from matplotlib.ticker import MaxNLocator

    first, last = min(steps), max(steps)
    margin = max(0.5, 0.02 * (last - first)) if last > first else 1
    axes.set_xlim(first - margin, last + margin)
    if last - first < FEW_STEPS:
        axes.set_xticks(range(first, last + 1))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=2))
    axes.xaxis.set_major_formatter("{x:.0f}")


def save_figure(figure: Any, png: str | os.PathLike) -> None:
    """Writes the picture, replacing an older one atomically."""
    for axes in figure.axes:
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    with atomic_file(png) as temporary:
        figure.savefig(temporary, format="png")
