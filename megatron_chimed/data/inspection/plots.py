"""Plots of sequence lengths and of tokens by source."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from megatron_chimed.data.datasets.prefix import Prefix
from megatron_chimed.data.inspection.statistics import UNITS, lengths_of
from megatron_chimed.data.inspection.token_blocks import ALL, document_ranges
from megatron_chimed.files import atomic_file

if TYPE_CHECKING:  # takes half a second to load
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BINS = 60
STACKED_SOURCES = 6  # shown in the histogram; the others are one group
SHOWN_BARS = 24
LABEL_LETTERS = 44
WIDE = 50  # above this ratio of the largest to the smallest, an axis is logarithmic
DPI = 150
REST = "others"
# Okabe and Ito, Color universal design (2008): told apart by the colour-blind too.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
PALE, GREY = "#A9CCE3", "0.7"


@dataclass(frozen=True)
class _Group:
    label: str
    lengths: np.ndarray  # int32 [sequences]
    supervised: int

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum(dtype=np.int64))


def plot_lengths(prefix: Prefix, path: str | os.PathLike, *, seq_length: int | None = None) -> None:
    """Plots histograms of sequence lengths, by sequences and by tokens.

    Args:
        prefix: An open prefix.
        path: The PNG to write, replaced atomically.
        seq_length: A sample length to mark, or None.
    """
    from matplotlib.ticker import LogLocator  # matplotlib is slow to load

    groups = _largest(prefix, STACKED_SOURCES)
    everything = prefix.indexed.lengths
    lengths = [np.maximum(group.lengths, 1) for group in groups]  # the axis has no zero
    longest = max(int(everything.max(initial=1)), 1)
    shortest = max(int(everything.min(initial=longest)), 1)
    bins = np.unique(np.geomspace(shortest, longest + 1, BINS).round()) - 0.5
    figure = _make_figure(height=6)
    above, below = figure.subplots(2, sharex=True)
    for axes, weights in ((above, None), (below, [group.lengths for group in groups])):
        axes.hist(
            lengths,
            bins=bins,
            weights=weights,
            stacked=True,
            color=[GREY if g.label.endswith(REST) else COLOURS[i] for i, g in enumerate(groups)],
            label=[group.label for group in groups],
        )
        axes.set_axisbelow(True)
        axes.grid(axis="y", color="0.9")
        axes.set_xscale("log")
        axes.yaxis.set_major_formatter(_format_count)
        _mark(axes, everything, seq_length)
    unit = UNITS[prefix.stage]
    above.set_ylabel(f"{unit} per bin")
    below.set(xlabel=f"tokens per {unit.removesuffix('s')} (log scale)", ylabel="tokens per bin")
    below.xaxis.set_major_formatter(_format_count)
    # Under two decades there are labels between powers of ten: a few plain numbers.
    below.xaxis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
    below.xaxis.set_minor_formatter(_format_count)
    counts = f"{len(everything):,} {unit}, {len(prefix.indexed.tokens):,} tokens"
    above.set_title(f"{_name(prefix)}: {counts}", loc="left")
    handles, labels = above.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    _save(figure, path)


def plot_sources(prefix: Prefix, path: str | os.PathLike) -> None:
    """Plots the tokens of each source, and the supervised ones if there is a mask.

    Args:
        prefix: An open prefix.
        path: The PNG to write, replaced atomically.
    """
    groups = _largest(prefix, SHOWN_BARS)
    tokens = [group.tokens for group in groups]
    places = range(len(groups))
    figure = _make_figure(height=1.7 + 0.36 * len(groups))
    axes = figure.subplots()
    is_masked = prefix.stage != "pretrain"
    colour = PALE if is_masked else COLOURS[0]
    axes.barh(places, tokens, height=0.7, color=colour, label="all tokens")
    if is_masked:
        learned = [group.supervised for group in groups]
        axes.barh(places, learned, height=0.7, color=COLOURS[0], label="supervised tokens")
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
    total = max(sum(tokens), 1)
    for place, count in enumerate(tokens):
        text = f" {_format_count(count)} ({count / total:.1%})"
        axes.annotate(text, (count, place), va="center", fontsize="small")
    smallest, largest = max(min(tokens, default=1), 1), max(*tokens, 1)
    if largest > WIDE * smallest:
        axes.set(xscale="log", xlabel="tokens (log scale)", xlim=(smallest / 3, largest * 6))
    else:
        axes.set(xlabel="tokens", xlim=(0, largest * 1.2))
    axes.set_yticks(places, [group.label for group in groups])
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(_format_count)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"{_name(prefix)}: tokens by source", loc="left")
    _save(figure, path)


def _largest(prefix: Prefix, limit: int) -> list[_Group]:
    """The sources with most tokens, and one group of all others."""
    sidecar = prefix.indexed.sidecar
    ranges = document_ranges(prefix.indexed)
    supervised = [0] * len(ranges)
    if sidecar is not None and len(ranges) == len(sidecar.sources):
        supervised = [source.supervised_tokens for source in sidecar.sources]
    groups = [
        _Group(
            label=part.name if part.name == ALL else _label(part.name, f"source {number}"),
            lengths=lengths_of(prefix, part),
            supervised=supervised[number - 1],
        )
        for number, part in enumerate(ranges, start=1)
    ]
    groups.sort(key=lambda group: -group.tokens)
    if len(groups) <= limit:
        return groups
    kept, rest = groups[: limit - 1], groups[limit - 1 :]
    merged = _Group(
        label=f"{len(rest)} {REST}",
        lengths=np.concatenate([group.lengths for group in rest]),
        supervised=sum(group.supervised for group in rest),
    )
    return [*kept, merged]


def _mark(axes: "Axes", lengths: np.ndarray, seq_length: int | None) -> None:
    """Vertical lines at the median, the 95 % quantile and `seq_length`."""
    if len(lengths):
        median, high = np.quantile(lengths, (0.5, 0.95), method="nearest").tolist()
        axes.axvline(median, color="0.2", linestyle="--", label=f"median {median:,}")
        axes.axvline(high, color="0.2", linestyle=":", label=f"95 % have at most {high:,}")
    if seq_length is not None:
        axes.axvline(seq_length, color="red", label=f"seq_length {seq_length:,}")


def _name(prefix: Prefix) -> str:
    return _label(prefix.name, "data")


def _label(path: str, otherwise: str) -> str:
    """The last part of a path, if Latin: the font of the plots has no other letters."""
    name = os.path.basename(path)
    if not all(letter.isprintable() and ord(letter) < 0x250 for letter in name):
        return otherwise
    # The text between two dollar signs would be set as mathematics.
    name = name.replace("$", r"\$")
    return name if len(name) <= LABEL_LETTERS else f"{name[: LABEL_LETTERS - 3]}..."


def _format_count(count: float, _position: float | None = None) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return f"{count:g}"


def _make_figure(*, height: float) -> "Figure":
    """A figure eight inches wide, without a window system or global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: "Figure", path: str | os.PathLike) -> None:
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png")
