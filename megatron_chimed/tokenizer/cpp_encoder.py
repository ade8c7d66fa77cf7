"""The C++ encoders of csrc/data, used by a tokenizer if they support the model.

For the models that they accept (byte pair encoding, and sentencepiece's unigram models) they give
the same ids as sentencepiece or the `tokenizers` library, several times as fast; all other models
are encoded by that library.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from megatron_chimed.tokenizer.byte_vocabulary import CompiledVocabulary, Vocabulary

if TYPE_CHECKING:
    import numpy as np

# Megatron's choice for token files: 16 bits below this vocabulary, else 32.
MAX_NARROW_VOCAB = 65500


class Encoder(Protocol):
    """What both C++ encoders do."""

    def encode(
        self, texts: Sequence[str], threads: int, is_wide: bool, end_id: int | None, /
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `Tokenizer.encode_packed`.

        Raises:
            ValueError: A text has no UTF-8 form.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class FastPath:
    """An encoder, or why there is none."""

    encoder: Encoder | None
    """The encoder; None: the library is used."""

    reason: str
    """Which encoder is used and why, for the user."""


def load_fast_path(model: bytes, added_tokens: Mapping[str, int]) -> FastPath:
    """Builds the encoder: 15-30 ms for a vocabulary of 32,000 pieces.

    Args:
        model: The bytes of a sentencepiece model file that sentencepiece has accepted.
        added_tokens: Literal text to id; split off before the model sees the text.
    """
    try:
        from megatron_chimed._data_helpers import SentencePieceEncoder, UnsupportedModel
    except ImportError as error:
        return FastPath(
            encoder=None,
            reason=f"sentencepiece: the C++ extension is not built ({error}); run `make install`",
        )
    try:
        encoder = SentencePieceEncoder(model, dict(added_tokens))
    except UnsupportedModel as error:
        return FastPath(encoder=None, reason=f"sentencepiece: {error}")
    return FastPath(encoder=encoder, reason=f"C++: {encoder.kind} with sentencepiece's ids")


def load_byte_fast_path(
    vocabulary: Vocabulary, rest: Mapping[str, Any], *, has_words: bool
) -> FastPath:
    """Builds the encoder of a byte-level BPE, which recognises no added token in text.

    Args:
        vocabulary: That of a file that `parse_byte_bpe` has accepted.
        rest: The parsed file.
        has_words: Whether added tokens must be recognised in text.
    """
    if has_words:
        return FastPath(encoder=None, reason="tokenizers: words are added to the vocabulary")
    try:
        from megatron_chimed._data_helpers import ByteBpeEncoder, UnsupportedModel
    except ImportError as error:
        return FastPath(
            encoder=None,
            reason=f"tokenizers: the C++ extension is not built ({error}); run `make install`",
        )
    if not isinstance(vocabulary, CompiledVocabulary):
        return FastPath(
            encoder=None, reason="tokenizers: the file is not laid out as the C++ encoder reads it"
        )
    try:
        encoder = ByteBpeEncoder(vocabulary.compiled, dict(rest))
    except UnsupportedModel as error:
        return FastPath(encoder=None, reason=f"tokenizers: {error}")
    return FastPath(encoder=encoder, reason="C++: byte-level BPE with the ids of tokenizers")


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


def pack_arrays(
    arrays: Sequence[Sequence[np.ndarray]], *, is_wide: bool, end_id: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """`pack` of the arrays of each text, without a Python object for each id."""
    import numpy as np

    dtype = np.int32 if is_wide else np.uint16
    lengths = np.fromiter((sum(map(len, parts)) for parts in arrays), np.int32, len(arrays))
    flat = [part for parts in arrays for part in parts]
    ids = np.concatenate([np.empty(0, np.int32), *flat]).astype(dtype)
    if end_id is not None:
        ends = np.cumsum(lengths, dtype=np.int64)[lengths > 0]
        ids = np.insert(ids, ends, end_id)
        lengths += lengths > 0
    return ids, lengths


def unpack(ids: np.ndarray, lengths: np.ndarray) -> list[list[int]]:
    """The inverse of `pack`."""
    values = ids.tolist()
    lists, start = [], 0
    for length in lengths.tolist():
        lists.append(values[start : start + length])
        start += length
    return lists
