"""The C++ loops of csrc/data, loaded when first needed so that tools without them start fast."""

import functools
from types import ModuleType

import numpy as np

from megatron_chimed.errors import ConfigError


def permutation(size: int, *, seed: int, epoch: int, stream: int) -> np.ndarray:
    """A random order of 0 .. size-1: a pure function of the arguments, on any platform.

    Fisher-Yates over Philox4x64-10 with key (seed, stream) and counter (0, 0, epoch, 0).

    Returns:
        int32 `[size]`, or int64 from 2^31 elements on.
    """
    return _extension().permutation(size, seed, epoch, stream)


def sample_index(
    lengths: np.ndarray, order: np.ndarray, *, seq_length: int, samples: int
) -> np.ndarray:
    """Where each sample starts in the documents `lengths[order]` joined one after another.

    Args:
        lengths: int32 `[documents]`, tokens of each document; zero is allowed.
        order: int32 or int64 `[n]`, document numbers.
        seq_length: Tokens from one sample's start to the next one's.
        samples: How many samples; the documents must hold `samples * seq_length + 1` tokens.

    Returns:
        int64 `[samples + 1, 2]`: place in `order` and token within that document; the last row is
        where the last sample's final token lies.
    """
    return _extension().sample_index(lengths, order, seq_length, samples)


def blend_chunk(
    weights: np.ndarray, counts: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The next `size` choices of a weighted blend.

    Args:
        weights: float64 `[datasets]`, adding up to 1.
        counts: int64 `[datasets]`, samples taken from each so far.
        size: Choices to make.

    Returns:
        int32 `[size]` data set, int64 `[size]` sample within it, int64 `[datasets]` new counts.
    """
    return _extension().blend_chunk(weights, counts, size)


@functools.cache
def _extension() -> ModuleType:
    try:
        from megatron_chimed import _data_helpers
    except ImportError as error:
        raise ConfigError(
            f"the C++ extension megatron_chimed._data_helpers is not built ({error}). "
            "Run `make install` in the project's root."
        ) from None
    return _data_helpers
