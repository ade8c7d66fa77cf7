"""Text to ids and back: a sentencepiece model plus tokens added to its vocabulary.

sentencepiece is the reference. Text is split at literal added tokens, longest match first, and each
piece between them is encoded separately with the model's own dummy prefix. That the authors of Ziya
did the same is inferred from their decoded text, which shows two spaces after a turn's tag where a
tokenizer without a dummy prefix would show one.

Control tokens (`<s>`, `</s>`, `<unk>`) are never recognised in text: `</s>` in a corpus or a prompt
is encoded as characters, not as an end of document.
"""

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import sentencepiece

from megatron_chimed.errors import ConfigError
from megatron_chimed.tokenizer.cpp_encoder import (
    MAX_NARROW_VOCAB,
    FastPath,
    load_fast_path,
    pack_arrays,
)
from megatron_chimed.tokenizer.model_proto import USER_DEFINED, parse_model
from megatron_chimed.tokenizer.tokenizer import SpecialTokens, Tokenizer, check_surrogates

if TYPE_CHECKING:
    import numpy as np


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece model with added tokens. Load one with `load_tokenizer`.

    Args:
        model: The bytes of a sentencepiece model file.
        added_tokens: Literal text to id. The ids are either those of the model's own pieces or
            follow them without a gap.
        special: Special ids; None takes the model's own.
        source: Origin of the model, for messages only.

    Raises:
        ConfigError: The bytes are no sentencepiece model, or the added tokens contradict it.
    """

    def __init__(
        self,
        model: bytes,
        added_tokens: Mapping[str, int] | None = None,
        *,
        special: SpecialTokens | None = None,
        source: str = "the given model",
    ) -> None:
        self._model = model
        self._processor = _load_processor(model, source)
        self._source = source
        added = dict(sorted((added_tokens or {}).items(), key=lambda item: item[1]))
        self._check_added_tokens(added)
        super().__init__(added, special or self._special_of_model(), source)
        self._cut = _compile_cut(self.added_tokens)

    @property
    def model_size(self) -> int:
        """Pieces of the sentencepiece model alone."""
        return self._processor.get_piece_size()

    @property
    def vocab_size(self) -> int:
        """The largest id plus one, with added tokens but without padding rows."""
        return max([self.model_size, *(index + 1 for index in self.added_tokens.values())])

    @property
    def model_bytes(self) -> bytes:
        """The sentencepiece model file, unchanged."""
        return self._model

    @functools.cached_property
    def identity(self) -> str:
        """Hex SHA-256 of the model bytes and the added tokens: equal where all ids are equal."""
        added = json.dumps(sorted(self.added_tokens.items()), ensure_ascii=False)
        digest = hashlib.sha256(self._model)
        digest.update(added.encode("utf-8"))
        return digest.hexdigest()

    @functools.cached_property
    def symbols(self) -> list[str]:
        """The model's user-defined pieces, which it recognises in text by itself."""
        pieces = parse_model(self._model).pieces
        return [piece.piece for piece in pieces if piece.type == USER_DEFINED]

    @property
    def recognised(self) -> list[str]:
        """The added tokens and the model's symbols."""
        return [*self.added_tokens, *self.symbols]

    @property
    def fast(self) -> str:
        """Which encoder is used, C++ or sentencepiece, and why."""
        return self._fast_path.reason

    def encode_packed(
        self, texts: Sequence[str], *, threads: int = 1, end_id: int | None = None
    ) -> "tuple[np.ndarray, np.ndarray]":
        """`encode` of each text, without a Python object per id.

        Memory in addition to the texts, in C++: the ids, and 2 MB per thread. A long stretch of
        text that cannot be split, such as a million times the same letter, takes 28 bytes per
        character. sentencepiece takes about 100 bytes per id.

        Args:
            texts: The texts, a list or a tuple.
            threads: Number of threads, without the GIL; the result does not depend on it.
            end_id: Appended to the ids of each text that has any, and counted in its length.

        Returns:
            The concatenated ids of all texts, uint16 if `vocab_size` is below 65500, else int32;
            and int32 `[len(texts)]`, the number of ids of each text.

        Raises:
            DataError: A text holds a lone surrogate, which has no UTF-8 form.
        """
        is_wide = self.vocab_size >= MAX_NARROW_VOCAB
        encoder = self._fast_path.encoder
        if encoder is None:
            arrays = self._arrays_by_sentencepiece(texts, threads)
            return pack_arrays(arrays, is_wide=is_wide, end_id=end_id)
        try:
            return encoder.encode(texts, threads, is_wide, end_id)
        except ValueError:
            check_surrogates(texts)
            raise

    def spot_check(self, texts: Sequence[str]) -> None:
        """Verifies the C++ encoder against sentencepiece; does nothing if it is not in use.

        Raises:
            DataError: The ids of a text differ: no output of the encoder can be trusted.
        """
        if self._fast_path.encoder is None:
            return
        expected = self._encode_by_sentencepiece(texts, threads=1)
        self._require_same(texts, expected, f"sentencepiece {sentencepiece.__version__}")

    def decode(self, ids: Iterable[int], *, keep_special: bool = False) -> str:
        """Text of ids: `decode(encode(text)) == text` wherever sentencepiece round-trips.

        Each run of ids between added or control tokens was encoded separately, so each loses the
        space of its own dummy prefix. Bytes that are not UTF-8 become U+FFFD.

        Args:
            ids: Token ids.
            keep_special: Spell special tokens such as `</s>` (`is_special`) instead of dropping
                them.

        Raises:
            DataError: An id is outside the vocabulary.
        """
        parts: list[str] = []
        run: list[int] = []
        for index in map(int, ids):
            self._check_id(index)
            is_special = self.is_special(index)
            if not is_special and index not in self._added_text:
                run.append(index)
                continue
            parts.append(self._processor.decode(run))
            run = []
            if keep_special or not is_special:
                parts.append(self.token(index))
        parts.append(self._processor.decode(run))
        return "".join(parts)

    def token(self, index: int) -> str:
        """The vocabulary's spelling of an id, for display (U+2581 marks a space).

        Raises:
            DataError: The id is outside the vocabulary.
        """
        self._check_id(index)
        return self._added_text.get(index) or self._processor.id_to_piece(index)

    def find(self, text: str) -> int | None:
        """The id of an added token or piece with exactly this spelling, or None."""
        if text in self.added_tokens:
            return self.added_tokens[text]
        index = self._processor.piece_to_id(text)
        return index if self._processor.id_to_piece(index) == text else None

    def is_control(self, index: int) -> bool:
        """Whether the model gives this id to no text: `<s>`, `</s>`, `<unk>`."""
        if index >= self.model_size:
            return False
        return self._processor.is_control(index) or self._processor.is_unknown(index)

    def is_special(self, index: int) -> bool:
        """Whether an id is structure rather than text: a control piece, or the end or padding id.

        `<unk>` is text: text that the vocabulary cannot spell.
        """
        if index in (self.bos_id, self.eos_id, self.pad_id) and index != self.unk_id:
            return True
        return index < self.model_size and self._processor.is_control(index)

    def with_special(self, special: SpecialTokens) -> "SentencePieceTokenizer":
        """The same vocabulary with other special ids; other ids are unchanged."""
        return SentencePieceTokenizer(self._model, self.added_tokens, special=special)

    @functools.cached_property
    def _fast_path(self) -> FastPath:
        return load_fast_path(self._model, self.added_tokens)

    def _encode_by_sentencepiece(self, texts: Sequence[str], threads: int) -> list[list[int]]:
        """The reference: one call of sentencepiece for all pieces of all texts."""
        check_surrogates(texts)
        pieces: list[str] = []
        plans = [self._plan(text, pieces) for text in texts]
        encoded = self._processor.encode(pieces, num_threads=threads)
        return [_assemble(plan, encoded) for plan in plans]

    def _arrays_by_sentencepiece(
        self, texts: Sequence[str], threads: int
    ) -> "list[list[np.ndarray]]":
        """The same ids as arrays, one or more for a text: an object for each would cost a third."""
        import numpy as np

        check_surrogates(texts)
        if self._cut is None:
            whole = self._processor.encode(list(texts), num_threads=threads, return_type="numpy")
            return [[ids] for ids in whole]
        pieces: list[str] = []
        plans = [self._plan(text, pieces) for text in texts]
        encoded = self._processor.encode(pieces, num_threads=threads, return_type="numpy")
        added = {index: np.array([index], np.int32) for index in self.added_tokens.values()}
        return [[added[n] if is_added else encoded[n] for is_added, n in plan] for plan in plans]

    def _plan(self, text: str, pieces: list[str]) -> list[tuple[bool, int]]:
        """Appends the text's pieces; returns (is added token, its id or the index of the piece)."""
        plan: list[tuple[bool, int]] = []
        for part in self._cut.split(text) if self._cut else [text]:
            if part in self.added_tokens:
                plan.append((True, self.added_tokens[part]))
            elif part:
                plan.append((False, len(pieces)))
                pieces.append(part)
        return plan

    def _check_added_tokens(self, added: Mapping[str, int]) -> None:
        beyond = sorted(i for i in added.values() if i >= self.model_size)
        expected = list(range(self.model_size, self.model_size + len(beyond)))
        if beyond != expected:
            raise ConfigError(
                f"added tokens of {self._source} have the ids {beyond}, but they must follow the "
                f"model's {self.model_size} pieces as {expected}, without gaps or repetitions. "
                "Give the tokenizer.model that these added tokens were made for."
            )
        for text, index in added.items():
            if not text:
                raise ConfigError(f"added token {index} of {self._source} is the empty text.")
            if index < 0 or (
                index < self.model_size and self._processor.id_to_piece(index) != text
            ):
                raise ConfigError(
                    f"{self._source}: added token {text!r} has id {index}, but the model's piece "
                    f"{index} is {self._processor.id_to_piece(max(index, 0))!r}. "
                    "The files belong to different tokenizers."
                )

    def _special_of_model(self) -> SpecialTokens:
        eos_id = self._processor.eos_id()
        if eos_id < 0:
            raise ConfigError(
                f"{self._source} has no end-of-sequence piece, which must end every document. "
                "Train it with one, or name eos_token in special_tokens_map.json."
            )
        return SpecialTokens(
            bos_id=_none_if_negative(self._processor.bos_id()),
            eos_id=eos_id,
            unk_id=self._processor.unk_id(),
            pad_id=_none_if_negative(self._processor.pad_id()),
            add_bos=self._processor.bos_id() >= 0,
        )


def _load_processor(model: bytes, source: str) -> sentencepiece.SentencePieceProcessor:
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model)
    except RuntimeError:
        raise ConfigError(
            f"{source} is not a sentencepiece model, or a damaged one. Give a tokenizer.model file."
        ) from None
    if processor.get_piece_size() == 0:
        raise ConfigError(
            f"{source} holds no pieces: an empty or truncated tokenizer.model. Restore the file."
        )
    return processor


def _compile_cut(added_tokens: Mapping[str, int]) -> re.Pattern[str] | None:
    if not added_tokens:
        return None
    longest_first = sorted(added_tokens, key=lambda text: (-len(text), text))
    return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")


def _assemble(plan: list[tuple[bool, int]], encoded: list[list[int]]) -> list[int]:
    ids: list[int] = []
    for is_added, number in plan:
        if is_added:
            ids.append(number)
        else:
            ids.extend(encoded[number])
    return ids


def _none_if_negative(index: int) -> int | None:
    return None if index < 0 else index
