"""Assigns samples to data-parallel ranks and steps.

Step `k` of a run takes exactly the samples `[k * global_batch_size, (k + 1) * global_batch_size)`
counted from `consumed_samples`, for any number of ranks; only their distribution differs.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from megatron_chimed.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class MicroBatchSampler:
    """Iterates endlessly over steps; a step is a list of micro-batches of sample indices.

    Micro-batch `m` of rank `r` starts at `(m * data_parallel_size + r) * micro_batch_size` within
    the step.
    """

    consumed_samples: int
    """Samples consumed before the first step."""

    global_batch_size: int
    """Samples per step, over all ranks."""

    micro_batch_size: int
    """Samples per forward pass of one rank."""

    data_parallel_rank: int
    """This rank, from 0."""

    data_parallel_size: int
    """Number of data-parallel ranks."""

    def __post_init__(self) -> None:
        """Checks the sizes.

        Raises:
            ConfigError: The global batch is not a whole number of micro-batches per rank.
        """
        for name in ("global_batch_size", "micro_batch_size", "data_parallel_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.consumed_samples < 0:
            raise ConfigError(f"consumed_samples is {self.consumed_samples}; it must not be < 0.")
        assert 0 <= self.data_parallel_rank < self.data_parallel_size, "no such rank"
        unit = self.micro_batch_size * self.data_parallel_size
        if self.global_batch_size % unit:
            nearest = max(round(self.global_batch_size / unit), 1) * unit
            raise ConfigError(
                f"global_batch_size ({self.global_batch_size}) is not a multiple of "
                f"micro_batch_size ({self.micro_batch_size}) x data-parallel size "
                f"({self.data_parallel_size}): every rank takes whole "
                f"micro-batches. The nearest that works is {nearest}."
            )

    @property
    def num_microbatches(self) -> int:
        """Micro-batches per step of each rank."""
        return self.global_batch_size // (self.micro_batch_size * self.data_parallel_size)

    def __iter__(self) -> Iterator[list[list[int]]]:
        """Yields the steps of this rank, starting at `consumed_samples`."""
        first = self.consumed_samples
        while True:
            yield [self._microbatch(first, number) for number in range(self.num_microbatches)]
            first += self.global_batch_size

    def _microbatch(self, first: int, number: int) -> list[int]:
        place = number * self.data_parallel_size + self.data_parallel_rank
        start = first + place * self.micro_batch_size
        return list(range(start, start + self.micro_batch_size))
