"""Blends several endless data sets into one, each with its share of the samples."""

import functools
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from megatron_chimed.data.datasets.native import blend_chunk
from megatron_chimed.errors import ConfigError

CHUNK_SAMPLES = 1 << 16
CACHED_CHUNKS = 4  # 12 bytes per sample each


class SampleSource(Protocol):
    """An endless deterministic sequence of samples."""

    @property
    def samples_per_epoch(self) -> int:
        """Samples per pass over all documents; in a blend, the sum over its data sets."""
        ...

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Sample `index >= 0`."""
        ...

    def locate(self, index: int) -> str:
        """Names the documents of a sample, for messages."""
        ...


def leaves(source: SampleSource) -> Iterator[SampleSource]:
    """The data sets that a blend is made of, or the source itself."""
    for part in getattr(source, "datasets", ()):
        yield from leaves(part)
    if not hasattr(source, "datasets"):
        yield source


class ConcatenatedDataset:
    """Several data sets in sequence, each read once.

    For validation: the shares of a blend would repeat small sets and skip parts of large ones.

    Args:
        datasets: The data sets.
        numbers: The `source` of the samples of each data set; None: its index.
    """

    def __init__(
        self, datasets: Sequence[SampleSource], *, numbers: Sequence[int] | None = None
    ) -> None:
        self.datasets = list(datasets)
        self._tags = _tags(numbers, len(self.datasets))
        sizes = [dataset.samples_per_epoch for dataset in self.datasets]
        self.samples_per_epoch = sum(sizes)
        self._ends = np.cumsum(sizes)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Sample `index >= 0` and its `source`, int64 []; starts over after the last sample."""
        dataset, sample = self._choice(index)
        return self.datasets[dataset][sample] | {"source": self._tags[dataset]}

    def locate(self, index: int) -> str:
        """Names the documents of a sample, for messages."""
        dataset, sample = self._choice(index)
        return self.datasets[dataset].locate(sample)

    def _choice(self, index: int) -> tuple[int, int]:
        index %= self.samples_per_epoch
        number = int(np.searchsorted(self._ends, index, side="right"))
        start = int(self._ends[number - 1]) if number else 0
        return number, index - start


class BlendedDataset:
    """Takes sample `i` from the data set that is furthest below its share so far.

    Each data set gives its own samples 0, 1, 2, ... in order, so a longer run only appends to a
    shorter one. Among the first `n` samples, the count of a data set differs from its share by less
    than the number of data sets. The rule is Megatron's.

    Args:
        datasets: The data sets; their order decides ties.
        weights: One positive number each; the sum is arbitrary.
        numbers: The `source` of the samples of each data set; None: its index.

    Raises:
        ConfigError: There is not one positive weight per data set.
    """

    def __init__(
        self,
        datasets: Sequence[SampleSource],
        weights: Sequence[float],
        *,
        numbers: Sequence[int] | None = None,
    ) -> None:
        if len(datasets) != len(weights) or not datasets:
            raise ConfigError(f"a blend of {len(datasets)} data sets has {len(weights)} weights.")
        if not all(0 < weight < float("inf") for weight in weights):
            raise ConfigError(f"blend weights {list(weights)}: each must be a positive number.")
        self.datasets = list(datasets)
        self._tags = _tags(numbers, len(self.datasets))
        self.weights = np.array(weights, np.float64) / sum(weights)
        # Counts at the start of each chunk so far; a chunk can be rebuilt from them.
        self._counts = [np.zeros(len(datasets), np.int64)]
        self._chunk = functools.lru_cache(maxsize=CACHED_CHUNKS)(self._build_chunk)

    @property
    def samples_per_epoch(self) -> int:
        """The sum over all data sets."""
        return sum(dataset.samples_per_epoch for dataset in self.datasets)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Sample `index >= 0` of its data set, and its `source`, int64 []."""
        dataset, sample = self.choice(index)
        return self.datasets[dataset][sample] | {"source": self._tags[dataset]}

    def locate(self, index: int) -> str:
        """Names the documents of a sample, for messages."""
        dataset, sample = self.choice(index)
        return self.datasets[dataset].locate(sample)

    def choice(self, index: int) -> tuple[int, int]:
        """The data set that sample `index` comes from, and its index there."""
        number, within = divmod(index, CHUNK_SAMPLES)
        while len(self._counts) <= number:  # a resumed run skips what it consumed
            self._build_chunk(len(self._counts) - 1)
        dataset_of, sample_of = self._chunk(number)
        return int(dataset_of[within]), int(sample_of[within])

    def _build_chunk(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        dataset_of, sample_of, counts = blend_chunk(
            self.weights, self._counts[number], CHUNK_SAMPLES
        )
        if len(self._counts) == number + 1:
            self._counts.append(counts)
        return dataset_of, sample_of


def _tags(numbers: Sequence[int] | None, datasets: int) -> np.ndarray:
    return np.arange(datasets) if numbers is None else np.array(numbers, np.int64)
