"""The C++ encoder of csrc/data, used by a tokenizer if it supports the model.

For the byte pair models that it accepts it gives the same ids as sentencepiece, several times as
fast; all other models are encoded by sentencepiece.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from megatron_chimed._data_helpers import BpeEncoder

# Megatron's choice for token files: 16 bits below this vocabulary, else 32.
MAX_NARROW_VOCAB = 65500


@dataclass(frozen=True, kw_only=True)
class FastPath:
    """An encoder, or why there is none."""

    encoder: BpeEncoder | None
    """The encoder; None: sentencepiece is used."""

    reason: str
    """Which encoder is used and why, for the user."""


def load_fast_path(model: bytes, added_tokens: Mapping[str, int]) -> FastPath:
    """Builds the encoder: 15-30 ms for a vocabulary of 32,000 pieces.

    Args:
        model: The bytes of a sentencepiece model file that sentencepiece has accepted.
        added_tokens: Literal text to id; split off before the model sees the text.
    """
    try:
        from megatron_chimed._data_helpers import BpeEncoder, UnsupportedModel
    except ImportError as error:
        return FastPath(
            encoder=None,
            reason=f"sentencepiece: the C++ extension is not built ({error}); run `make install`",
        )
    try:
        encoder = BpeEncoder(model, dict(added_tokens))
    except UnsupportedModel as error:
        return FastPath(encoder=None, reason=f"sentencepiece: {error}")
    return FastPath(encoder=encoder, reason="C++: byte pair encoding with sentencepiece's ids")


def pack(
    lists: Sequence[list[int]], *, is_wide: bool, end_id: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Lists of ids as one array and their lengths, like the output of the C++ encoder."""
    import numpy as np

    if end_id is not None:
        lists = [[*ids, end_id] if ids else ids for ids in lists]
    lengths = np.fromiter(map(len, lists), np.int32, len(lists))
    dtype = np.int32 if is_wide else np.uint16
    ids = np.fromiter(itertools.chain.from_iterable(lists), dtype, int(lengths.sum()))
    return ids, lengths


def unpack(ids: np.ndarray, lengths: np.ndarray) -> list[list[int]]:
    """The inverse of `pack`."""
    values = ids.tolist()
    lists, start = [], 0
    for length in lengths.tolist():
        lists.append(values[start : start + length])
        start += length
    return lists
