"""Lengths of documents, in numbers and as a picture."""

import os
from dataclasses import dataclass

import numpy as np

from megatron_chimed.data.indexed import IndexedDataset
from megatron_chimed.files import atomic_file

HISTOGRAM_BINS = 60


@dataclass(frozen=True, kw_only=True)
class LengthStatistics:
    """Tokens per document of one source, or of all."""

    name: str
    """The source file, or what the row sums up."""

    documents: int
    """How many."""

    tokens: int
    """In all of them."""

    mean: float
    """Tokens per document."""

    quantiles: tuple[int, ...]
    """Tokens at the quantiles `QUANTILES`."""


QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)


def length_statistics(indexed: IndexedDataset) -> list[LengthStatistics]:
    """One row per source, where the sidecar names any, and one for all."""
    lengths = indexed.document_lengths(0, indexed.num_documents)
    sources = indexed.sidecar.sources if indexed.sidecar is not None else ()
    rows = [_summarize(source.file, lengths[slice(*source.documents)]) for source in sources]
    return [*rows, _summarize("all", lengths)]


def write_length_histogram(indexed: IndexedDataset, path: str | os.PathLike) -> None:
    """Draws the lengths on a logarithmic axis: documents, and the tokens they hold.

    Args:
        indexed: An open prefix.
        path: The PNG to write, replaced atomically.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lengths = indexed.document_lengths(0, indexed.num_documents)
    bins = np.geomspace(1, max(int(lengths.max(initial=1)), 2), HISTOGRAM_BINS)
    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.hist(lengths, bins=bins, color="tab:blue", alpha=0.6, label="documents")
    axes.set(xscale="log", xlabel="tokens per document", ylabel="documents")
    tokens = axes.twinx()
    tokens.hist(
        lengths, bins=bins, weights=lengths, color="tab:orange", histtype="step", label="tokens"
    )
    tokens.set_ylabel("tokens")
    figure.legend(loc="outside upper right", ncols=2, frameon=False)
    axes.set_title(indexed.prefix, loc="left", fontsize="small")
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png")


def _summarize(name: str, lengths: np.ndarray) -> LengthStatistics:
    quantiles = np.quantile(lengths, QUANTILES, method="nearest") if len(lengths) else []
    return LengthStatistics(
        name=name,
        documents=len(lengths),
        tokens=int(lengths.sum(dtype=np.int64)),
        mean=float(lengths.mean()) if len(lengths) else 0.0,
        quantiles=tuple(int(value) for value in quantiles),
    )
