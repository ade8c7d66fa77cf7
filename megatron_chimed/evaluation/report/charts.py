"""Charts as inline SVG, in the colours of the page."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

LABEL_WIDTH, PLOT_WIDTH, ROW_HEIGHT = 180, 420, 26
RADIUS = 130


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One value with its interval, all within 0 to 1."""

    label: str
    value: float
    low: float | None
    high: float | None
    colour: int
    """Index of the model, which decides the colour."""


def interval_chart(bars: Sequence[Bar], baselines: Sequence[tuple[str, float]]) -> str:
    """Values with intervals, one below the other, and baselines as dashed lines."""
    height = ROW_HEIGHT * len(bars) + 30
    parts = [
        f'<svg viewBox="0 0 {LABEL_WIDTH + PLOT_WIDTH + 70} {height}" role="img" '
        f'class="chart" style="max-width:{LABEL_WIDTH + PLOT_WIDTH + 70}px">'
    ]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = _x(tick)
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="0" y2="{height - 20}"/>')
        parts.append(f'<text class="tick" x="{x}" y="{height - 6}">{tick:g}</text>')
    for name, value in baselines:
        x = _x(value)
        title = f"<title>{html.escape(name)}: {value:.4f}</title>"
        parts.append(
            f'<line class="base" x1="{x}" x2="{x}" y1="0" y2="{height - 20}">{title}</line>'
        )
    for row, bar in enumerate(bars):
        y = ROW_HEIGHT * row + ROW_HEIGHT / 2
        label = html.escape(_short(bar.label))
        parts.append(f'<text class="label" x="{LABEL_WIDTH - 10}" y="{y + 4}">{label}</text>')
        if bar.low is not None and bar.high is not None:
            parts.append(
                f'<line class="m{bar.colour % 6} whisker" x1="{_x(bar.low)}" x2="{_x(bar.high)}" '
                f'y1="{y}" y2="{y}"/>'
            )
        parts.append(f'<circle class="m{bar.colour % 6}" cx="{_x(bar.value)}" cy="{y}" r="5"/>')
        end = LABEL_WIDTH + PLOT_WIDTH + 12
        parts.append(f'<text class="value" x="{end}" y="{y + 4}">{bar.value:.3f}</text>')
    return "".join(parts) + "</svg>"


def radar_chart(axes: Sequence[str], models: Sequence[Sequence[float | None]]) -> str:
    """One polygon for each model over three axes or more; all values are within 0 to 1.

    Args:
        axes: Names of measures.
        models: A value for each axis; None is drawn as 0.
    """
    width, centre = 640, (320, 180)
    parts = [
        f'<svg viewBox="0 0 {width} 370" role="img" class="chart" style="max-width:{width}px">'
    ]
    for share in (0.25, 0.5, 0.75, 1.0):
        ring = _polygon([share] * len(axes), centre)
        parts.append(f'<polygon class="ring" points="{ring}"/>')
    for index, name in enumerate(axes):
        x, y = _point(1.12, index, len(axes), centre)
        anchor = "middle" if abs(x - centre[0]) < 20 else "start" if x > centre[0] else "end"
        parts.append(
            f'<text class="axis" x="{x:.1f}" y="{y + 4:.1f}" text-anchor="{anchor}">'
            f"{html.escape(_short(name))}</text>"
        )
    for number, values in enumerate(models):
        points = _polygon([value or 0.0 for value in values], centre)
        parts.append(f'<polygon class="m{number % 6} area" points="{points}"/>')
    return "".join(parts) + "</svg>"


def _x(value: float) -> float:
    return round(LABEL_WIDTH + PLOT_WIDTH * min(max(value, 0.0), 1.0), 1)


def _point(
    value: float, index: int, count: int, centre: tuple[float, float]
) -> tuple[float, float]:
    angle = 2 * math.pi * index / count - math.pi / 2
    return (
        centre[0] + RADIUS * value * math.cos(angle),
        centre[1] + RADIUS * value * math.sin(angle),
    )


def _polygon(values: Sequence[float], centre: tuple[float, float]) -> str:
    points = [_point(value, i, len(values), centre) for i, value in enumerate(values)]
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _short(text: str) -> str:
    return text if len(text) <= 26 else f"{text[:25]}…"
