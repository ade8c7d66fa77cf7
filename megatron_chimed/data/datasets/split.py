"""Train, validation and test as ranges of documents of one prefix, the Megatron way."""

from megatron_chimed.errors import ConfigError, DataError

PARTS = ("train", "valid", "test")


def parse_split(split: str) -> tuple[float, ...]:
    """Three weights from a text such as "969,30,1"; missing ones are 0.

    Raises:
        ConfigError: Not one to three numbers that are not negative and not all zero.
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
    """Cuts documents into consecutive parts, the borders rounded to whole documents.

    Args:
        weights: Of each part; their sum is the whole.
        documents: How many there are.
        prefix: For messages.

    Returns:
        First document of each part, and the first after it; None where the weight is 0.

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
