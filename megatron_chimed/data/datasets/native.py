"""Python signatures of the C++ loops of csrc/data."""

import numpy as np

from megatron_chimed.data.extension import extension


def permutation(size: int, *, seed: int, epoch: int, stream: int) -> np.ndarray:
    """A random order of 0 .. size-1: a pure function of the arguments, on any platform.

    Fisher-Yates over Philox4x64-10 with key (seed, stream) and counter (0, 0, epoch, 0).

    Returns:
        int32 `[size]`, or int64 from 2^31 elements on.
    """
    return extension().permutation(size, seed, epoch, stream)


def sample_index(
    lengths: np.ndarray, order: np.ndarray, *, seq_length: int, samples: int
) -> np.ndarray:
    """Where each sample starts in the concatenated documents `lengths[order]`.

    Args:
        lengths: int32 `[documents]`, tokens of each document; zero is allowed.
        order: int32 or int64 `[n]`, document indices.
        seq_length: Tokens from the start of one sample to the next.
        samples: Number of samples; needs `samples * seq_length + 1` tokens.

    Returns:
        int64 `[samples + 1, 2]`: index into `order` and token within that document; the last row
        locates the final token of the last sample.
    """
    return extension().sample_index(lengths, order, seq_length, samples)


def blend_chunk(
    weights: np.ndarray, counts: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The next `size` choices of a weighted blend.

    Args:
        weights: float64 `[datasets]`, adding up to 1.
        counts: int64 `[datasets]`, samples taken from each so far.
        size: Number of choices.

    Returns:
        int32 `[size]` data set, int64 `[size]` sample within it, int64 `[datasets]` new counts.
    """
    return extension().blend_chunk(weights, counts, size)


def gather(tokens: np.ndarray, starts: np.ndarray, lengths: np.ndarray, *, ids: np.ndarray) -> None:
    """Concatenates slices of a token file into `ids`, which they must fill exactly.

    Args:
        tokens: Integers `[n]`, the whole token file.
        starts: int64 `[k]`, first token of each slice.
        lengths: int64 `[k]`, its tokens; zero is allowed.
        ids: int64 `[sum of lengths]`, written to.

    Raises:
        IndexError: A slice exceeds the file, or they do not fill `ids`.
    """
    extension().gather(tokens, starts, lengths, ids)


def mark_documents(
    ids: np.ndarray,
    end_of_document: int,
    *,
    positions: np.ndarray | None = None,
    loss_mask: np.ndarray | None = None,
    segments: np.ndarray | None = None,
) -> None:
    """Fills the arrays that depend on the ends of documents; None skips an array.

    Args:
        ids: int64 `[s]`, the inputs of a sample.
        end_of_document: The id that ends a document, and belongs to it.
        positions: int64 `[s]`, restarting at 0 after each end.
        loss_mask: float32 `[s]`, 0 where the input is an end: what follows cannot be predicted.
        segments: int32 `[s]`, the number of ends before each token.
    """
    extension().mark_documents(ids, end_of_document, positions, loss_mask, segments)


def gather_pack(
    tokens: np.ndarray, targets: np.ndarray, starts: np.ndarray, lengths: np.ndarray, *, size: int
) -> dict[str, np.ndarray]:
    """A packed sample: slices of a token file, each its own segment, then padding.

    Args:
        tokens: Integers `[n]`, the whole token file.
        targets: uint8 `[n]`, 1 where a token is to be predicted.
        starts: int64 `[k]`, first token of each slice.
        lengths: int64 `[k]`, its tokens, at most `size` in total.
        size: Tokens of the sample, s.

    Returns:
        `tokens`, `labels`, `position_ids` int64 `[s]`, `loss_mask` float32 `[s]` and `segment_ids`
        int32 `[s]`. Labels and mask are shifted within each segment: its last token predicts
        nothing. Padding is id 0 in the last segment.

    Raises:
        IndexError: A slice exceeds the file, or they are longer than `size`.
    """
    return extension().gather_pack(tokens, targets, starts, lengths, size)


def pack(lengths: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Packs sequences by best-fit decreasing, about 40 ms for a million.

    The number of packs depends on the lengths alone, not on their order.

    Args:
        lengths: int32 `[n]`, each in [0, capacity].
        capacity: Tokens of a pack.

    Returns:
        int32 `[n]`, sequence indices pack by pack, and int64 `[packs + 1]`, where each pack starts
        in them.
    """
    return extension().pack(lengths, capacity)
