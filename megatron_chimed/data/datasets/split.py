"""Splits the documents of a prefix into train, validation and test ranges, like Megatron."""

from megatron_chimed.errors import ConfigError, DataError

PARTS = ("train", "valid", "test")


def parse_split(split: str) -> tuple[float, ...]:
    """Parses three weights such as "969,30,1"; missing ones are 0.

    Raises:
        ConfigError: There are not one to three non-negative weights, or all are zero.
    """
    try:
        weights = tuple(float(part) for part in split.split(","))
    except ValueError:
        weights = ()
    is_valid = 1 <= len(weights) <= len(PARTS) and all(0 <= w < float("inf") for w in weights)
    if not is_valid or sum(weights) == 0:
        raise ConfigError(
            f"split {split!r} is not up to three weights for {', '.join(PARTS)}: write for example "
            '"969,30,1".'
        )
    return weights + (0.0,) * (len(PARTS) - len(weights))


def split_documents(
    weights: tuple[float, ...], documents: int, prefix: str
) -> list[tuple[int, int] | None]:
    """Splits documents into consecutive parts, rounded to whole documents.

    Args:
        weights: Relative size of each part.
        documents: Number of documents.
        prefix: The prefix, for messages.

    Returns:
        First document of each part, and the first after it; None if the weight is 0.

    Raises:
        DataError: A part with a weight gets no document.
    """
    ranges: list[tuple[int, int] | None] = []
    taken, first = 0.0, 0
    for part, weight in zip(PARTS, weights, strict=True):
        taken += weight
        last = round(taken / sum(weights) * documents)
        if weight and last <= first:
            raise DataError(
                f"{prefix}: the split {','.join(f'{w:g}' for w in weights)} of {documents} "
                f"documents leaves none for {part}. Give it more weight or more documents."
            )
        ranges.append((first, last) if weight else None)
        first = last
    return ranges
