"""Statistics of sequence lengths, and of how samples of a given length are filled."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from megatron_chimed.data.datasets.config import DataConfig, Datasets, build_datasets
from megatron_chimed.data.datasets.packing import Overlong
from megatron_chimed.data.datasets.prefix import Prefix
from megatron_chimed.data.inspection.token_blocks import ALL, DocumentRange, document_ranges
from megatron_chimed.data.inspection.token_views import is_padding
from megatron_chimed.tokenizer import Tokenizer

QUANTILES = (0.0, 0.05, 0.5, 0.95, 0.99, 1.0)
MEASURED_SAMPLES = 4096
POLICIES: dict[str, tuple[Overlong, ...]] = {
    "pretrain": ("error",),
    "sft": ("drop", "truncate"),
    "preference": ("drop",),
}
UNITS = {"pretrain": "documents", "sft": "conversations", "preference": "candidates"}
"""What a sequence is called in each stage."""


@dataclass(frozen=True, kw_only=True)
class LengthRow:
    """Tokens per sequence of one source, or of all."""

    name: str
    """The source file, or `all`."""

    sequences: int
    """Number of sequences."""

    tokens: int
    """Tokens in all of them."""

    mean: float
    """Tokens per sequence."""

    quantiles: tuple[int, ...]
    """Tokens at the quantiles `QUANTILES`; empty without sequences."""


def length_rows(prefix: Prefix) -> list[LengthRow]:
    """One row per source listed in the sidecar, and one for all."""
    ranges = document_ranges(prefix.indexed)
    rows = [_length_row(part.name, lengths_of(prefix, part)) for part in ranges]
    if [part.name for part in ranges] == [ALL]:
        return rows
    return [*rows, _length_row(ALL, prefix.indexed.lengths)]


def lengths_of(prefix: Prefix, part: DocumentRange) -> np.ndarray:
    """int32 `[sequences]`: tokens of each sequence of a range of documents."""
    first, last = prefix.indexed.document_indices[list(part.documents)].tolist()
    return prefix.indexed.lengths[first:last]


def _length_row(name: str, lengths: np.ndarray) -> LengthRow:
    quantiles = np.quantile(lengths, QUANTILES, method="nearest") if len(lengths) else []
    return LengthRow(
        name=name,
        sequences=len(lengths),
        tokens=int(lengths.sum(dtype=np.int64)),
        mean=float(lengths.mean()) if len(lengths) else 0.0,
        quantiles=tuple(int(value) for value in quantiles),
    )


@dataclass(frozen=True, kw_only=True)
class FillRow:
    """How training fills samples of one length."""

    method: str
    """How sequences become samples."""

    samples: int
    """Samples of an epoch."""

    measured: int
    """Samples measured for the shares below."""

    padding: float
    """Share of positions without a token."""

    learned: float
    """Share of positions whose target is learned."""

    segments: float
    """Isolated segments per sample."""

    notes: tuple[str, ...] = ()
    """The notes of the data set on what it dropped."""


def fill_rows(name: str, prefix: Prefix, *, seq_length: int, seed: int) -> Iterator[FillRow]:
    """How each policy for overlong sequences fills samples, measured on training samples.

    Raises:
        DataError: No sequence fits.
    """
    longest = int(prefix.indexed.document_lengths(0, prefix.indexed.num_documents).max(initial=0))
    if prefix.stage != "pretrain":
        yield _one_each(prefix, seq_length)
    for overlong in POLICIES[prefix.stage]:
        config = DataConfig(train=name, seq_length=seq_length, overlong=overlong)
        datasets = open_samples(config, prefix, seed=seed)
        if prefix.stage == "pretrain":
            yield _measure(datasets, "documents joined")
        elif longest <= seq_length:
            yield _measure(datasets, "packed, all fit")
            return
        else:
            yield _measure(datasets, f"packed, overlong: {overlong}")


def open_samples(
    config: DataConfig, prefix: Prefix, *, seed: int, tokenizer: Tokenizer | None = None
) -> Datasets:
    """The samples of one prefix as read by a run with that configuration.

    Args:
        config: Names the prefix as `train`.
        prefix: The same prefix, open.
        seed: Seed of the order: `training.seed` of the run.
        tokenizer: The tokenizer of the run; None trusts the sidecar. Needed to find ends of
            documents in files without a sidecar.
    """
    sidecar = prefix.indexed.sidecar
    identity = sidecar.tokenizer_sha256 if sidecar is not None else ""
    vocab_size = sidecar.vocab_size if sidecar is not None else np.iinfo(np.int64).max
    return build_datasets(
        config,
        stage=prefix.stage,
        vocab_size=int(vocab_size) if tokenizer is None else tokenizer.vocab_size,
        tokenizer_identity=identity if tokenizer is None else tokenizer.identity,
        eod_id=-1 if tokenizer is None else tokenizer.eod_id,
        seed=seed,
    )


def _one_each(prefix: Prefix, seq_length: int) -> FillRow:
    """Without packing: one sample per sequence, cut if it is too long."""
    lengths = np.minimum(prefix.indexed.lengths, seq_length)
    positions = max(len(lengths) * seq_length, 1)
    supervised = prefix.indexed.sidecar.supervised_tokens if prefix.indexed.sidecar else 0
    return FillRow(
        method="not packed, for comparison",
        samples=len(lengths),
        measured=len(lengths),
        padding=1 - float(lengths.sum(dtype=np.int64)) / positions,
        learned=supervised / positions,
        segments=1.0,
    )


def _measure(datasets: Datasets, method: str) -> FillRow:
    dataset = datasets.train
    measured = min(dataset.samples_per_epoch, MEASURED_SAMPLES)
    positions = padding = learned = segments = 0
    for index in range(measured):
        sample = dataset[index]
        positions += len(sample["tokens"])
        learned += int(np.count_nonzero(sample["loss_mask"]))
        padded = _padding_of(sample)
        padding += padded
        ids = sample.get("segment_ids")
        segments += 1 if ids is None else int(np.count_nonzero(np.diff(ids))) + 1 - (padded > 0)
    return FillRow(
        method=method,
        samples=dataset.samples_per_epoch,
        measured=measured,
        padding=padding / positions,
        learned=learned / positions,
        segments=segments / measured,
        notes=datasets.notes,
    )


def _padding_of(sample: dict[str, np.ndarray]) -> int:
    ids = sample.get("segment_ids")
    if ids is None:
        return 0
    changes = np.flatnonzero(np.diff(ids))
    last = slice(int(changes[-1]) + 1 if len(changes) else 0, len(ids))
    return last.stop - last.start if is_padding(sample, last) else 0
