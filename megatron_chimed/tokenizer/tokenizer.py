"""What every tokenizer does: text to ids and back.

Structure never comes from text. A control token that a text spells, such as `</s>` or
`<|im_end|>`, is encoded as characters: it ends no document and no turn.
"""

import abc
import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from megatron_chimed.errors import DataError
from megatron_chimed.tokenizer.cpp_encoder import unpack

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """Special ids, which a Hugging Face folder may set in addition to its vocabulary."""

    bos_id: int | None
    """Begin of sequence; None: the tokenizer has none."""

    eos_id: int
    """End of sequence."""

    unk_id: int | None
    """The id of text that the vocabulary cannot spell; None: it can spell any text."""

    pad_id: int | None
    """Padding; None: the tokenizer has none."""

    add_bos: bool
    """Whether `transformers` prepends `bos_id` by default. `Tokenizer.encode` never does."""


class Tokenizer(abc.ABC):
    """Text to ids and back. Load one with `load_tokenizer`.

    Args:
        added_tokens: Literal text to id of the tokens added to the vocabulary.
        special: Special ids.
        source: Origin, for messages only.
    """

    def __init__(
        self, added_tokens: Mapping[str, int], special: SpecialTokens, source: str
    ) -> None:
        self.added_tokens: dict[str, int] = dict(
            sorted(added_tokens.items(), key=lambda item: item[1])
        )
        self.special = special
        self._source = source

    @property
    @abc.abstractmethod
    def vocab_size(self) -> int:
        """The largest id plus one, with added tokens but without padding rows."""

    @property
    def bos_id(self) -> int | None:
        """Begin of sequence, or None."""
        return self.special.bos_id

    @property
    def eos_id(self) -> int:
        """End of sequence."""
        return self.special.eos_id

    @property
    def pad_id(self) -> int | None:
        """Padding, or None: LLaMA has none."""
        return self.special.pad_id

    @property
    def unk_id(self) -> int | None:
        """Unknown, or None: a byte-level vocabulary spells every text."""
        return self.special.unk_id

    @property
    def eod_id(self) -> int:
        """End of a pretraining document: the end of sequence, unless that only ends a turn."""
        return self.eos_id

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids at which a completion ends, the end of sequence first."""
        return (self.eos_id,)

    @property
    @abc.abstractmethod
    def identity(self) -> str:
        """Hex SHA-256 of all that decides ids: equal where all ids are equal."""

    @property
    @abc.abstractmethod
    def recognised(self) -> list[str]:
        """Texts that `encode` turns into one id of their own wherever they occur."""

    @property
    @abc.abstractmethod
    def fast(self) -> str:
        """Which encoder is used, C++ or a library's, and why."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without begin and end of sequence.

        Raises:
            DataError: `text` holds a lone surrogate, which has no UTF-8 form.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, as Python lists."""
        return unpack(*self.encode_packed(texts))

    @abc.abstractmethod
    def encode_packed(
        self, texts: Sequence[str], *, threads: int = 1, end_id: int | None = None
    ) -> "tuple[np.ndarray, np.ndarray]":
        """`encode` of each text, without a Python object per id.

        Args:
            texts: The texts, a list or a tuple.
            threads: Number of threads of the C++ encoder, without the GIL; the result does not
                depend on it.
            end_id: Appended to the ids of each text that has any, and counted in its length.

        Returns:
            The concatenated ids of all texts, uint16 if `vocab_size` is below 65500, else int32;
            and int32 `[len(texts)]`, the number of ids of each text.

        Raises:
            DataError: A text holds a lone surrogate, which has no UTF-8 form.
        """

    @abc.abstractmethod
    def spot_check(self, texts: Sequence[str]) -> None:
        """Compares the C++ encoder with the library it replaces; does nothing without it.

        Raises:
            DataError: The ids of a text differ: no output of the encoder can be trusted.
        """

    @abc.abstractmethod
    def decode(self, ids: Iterable[int], *, keep_special: bool = False) -> str:
        """Text of ids. Bytes that are not UTF-8 become U+FFFD.

        Args:
            ids: Token ids.
            keep_special: Spell special tokens such as `</s>` (`is_special`) instead of dropping
                them.

        Raises:
            DataError: An id is outside the vocabulary.
        """

    @abc.abstractmethod
    def token(self, index: int) -> str:
        """An id for display: U+2581 marks a space, `<0xE5>` a byte that is no character.

        Raises:
            DataError: The id is outside the vocabulary.
        """

    @abc.abstractmethod
    def find(self, text: str) -> int | None:
        """The id of an added token or piece with exactly this spelling, or None."""

    @abc.abstractmethod
    def is_control(self, index: int) -> bool:
        """Whether no text gives this id: `<s>`, `</s>`, `<unk>`, `<|im_end|>`."""

    @abc.abstractmethod
    def is_special(self, index: int) -> bool:
        """Whether an id is structure rather than text: a control token, or the end or padding id.

        The unknown id is text: text that the vocabulary cannot spell.
        """

    @abc.abstractmethod
    def with_special(self, special: SpecialTokens) -> "Tokenizer":
        """The same vocabulary with other special ids; other ids are unchanged."""

    def named_tokens(self) -> dict[str, str]:
        """The special tokens by the names of `transformers`, without those that are missing."""
        ids = {
            "bos_token": self.bos_id,
            "eos_token": self.eos_id,
            "unk_token": self.unk_id,
            "pad_token": self.pad_id,
        }
        return {name: self.token(index) for name, index in ids.items() if index is not None}

    @functools.cached_property
    def _added_text(self) -> dict[int, str]:
        return {index: text for text, index in self.added_tokens.items()}

    def _require_same(
        self, texts: Sequence[str], expected: Sequence[list[int]], library: str
    ) -> None:
        for text, found, right in zip(texts, self.encode_batch(texts), expected, strict=True):
            if found != right:
                raise DataError(
                    f"the C++ encoder and {library} disagree on {text[:200]!r} ({self._source}): "
                    f"{found[:50]} and {right[:50]}. The ids cannot be trusted: please report this "
                    "text with the tokenizer's file."
                )

    def _check_id(self, index: int) -> None:
        if not 0 <= index < self.vocab_size:
            raise DataError(
                f"token id {index} is outside the vocabulary of {self.vocab_size} ids "
                f"({self._source}). Was it made with another tokenizer?"
            )


def check_surrogates(texts: Iterable[str]) -> None:
    """Refuses texts that cannot be encoded in UTF-8.

    Raises:
        DataError: A text holds a lone surrogate.
    """
    try:
        for text in texts:
            text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"text holds the lone surrogate U+{ord(error.object[error.start]):04X} at "
            f"character {error.start}: it has no UTF-8 form. Remove it from the text."
        ) from None
