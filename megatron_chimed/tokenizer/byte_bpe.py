"""Byte-level BPE of a `tokenizer.json`, as Qwen, Llama 3 and DeepSeek use it.

The `tokenizers` library is the reference. Unlike `transformers`, `encode` recognises no structure
in text: not the special tokens, and not `<think>` or `<tool_call>` either, which a Qwen template
writes itself and which would let a user forge a tool's result. Of text that spells none of them,
the ids are those of `transformers`. The exception are words: tokens that were added as text
(neither special nor exempt from normalisation), which belong to the vocabulary.
"""

import copy
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from megatron_chimed.errors import DataError
from megatron_chimed.tokenizer.byte_level import BYTE_OF, readable, to_bytes
from megatron_chimed.tokenizer.cpp_encoder import (
    MAX_NARROW_VOCAB,
    FastPath,
    load_byte_fast_path,
    pack,
)
from megatron_chimed.tokenizer.tokenizer import SpecialTokens, Tokenizer, check_surrogates
from megatron_chimed.tokenizer.tokenizer_json import (
    ByteBpe,
    read_object,
    text_of,
    without_structure,
)

if TYPE_CHECKING:
    import numpy as np
    import tokenizers

JSON_NAME = "tokenizer.json"
CONFIG_NAME = "tokenizer_config.json"
MAP_NAME = "special_tokens_map.json"
SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")
DOCUMENT_ENDS = ("<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>", "</s>")  # noqa: RUF001
"""What ends a document, by family."""
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>")
"""What ends a turn in vocabularies that have both; an instruct model calls it end of sequence."""
BEGINS = ("<|begin_of_text|>", "<｜begin▁of▁sentence｜>", "<s>")  # noqa: RUF001
SPACE = "\u2581"  # how `token` shows a space, as sentencepiece does


class ByteBpeTokenizer(Tokenizer):
    """A `tokenizer.json` of byte-level BPE. Load one with `load_tokenizer`.

    Args:
        content: The parsed file.
        special: Special ids.
        files: Its files by name, to save with a model; `tokenizer.json` is one of them.
        stop_ids: Further ids at which a completion ends.
        source: Origin, for messages only.

    Raises:
        DataError: Text can spell an added token.
    """

    def __init__(
        self,
        content: ByteBpe,
        *,
        special: SpecialTokens,
        files: Mapping[str, bytes],
        stop_ids: Sequence[int] = (),
        source: str = "the given tokenizer.json",
    ) -> None:
        added = {token.text: token.index for token in content.added}
        super().__init__(added, special, source)
        self._content = content
        self._files = dict(files)
        self._stop_ids = tuple(stop_ids)
        self._special_ids = {token.index for token in content.added if token.is_special}
        self._words = {token.index for token in content.added if token.is_word}
        self._check_structure()

    @property
    def vocab_size(self) -> int:
        """The largest id plus one, with added tokens but without padding rows."""
        return self._content.num_ids

    @property
    def eod_id(self) -> int:
        """End of a pretraining document: not the end of a turn, if there are both."""
        if self._added_text.get(self.eos_id) not in TURN_ENDS:
            return self.eos_id
        ends = (self.added_tokens[text] for text in DOCUMENT_ENDS if text in self.added_tokens)
        return next(ends, self.eos_id)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The end of sequence, those of generation_config.json, and ends of turns and documents."""
        names = (*TURN_ENDS, *DOCUMENT_ENDS)
        known = (self.added_tokens[text] for text in names if text in self.added_tokens)
        return tuple(dict.fromkeys((self.eos_id, *self._stop_ids, *known)))

    @functools.cached_property
    def identity(self) -> str:
        """Hex SHA-256 of vocabulary, merges, rules and added tokens: equal where all ids are."""
        return self._content.identity()

    @property
    def recognised(self) -> list[str]:
        """Added words only: special tokens in text are text."""
        return [text for text, index in self.added_tokens.items() if index in self._words]

    @property
    def fast(self) -> str:
        """Which encoder is used, C++ or the `tokenizers` library, and why."""
        return self._fast_path.reason

    @property
    def files(self) -> dict[str, bytes]:
        """Its files by name, as they were read; if they name other special ids, with ours."""
        found = dict(self._files)
        new = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        config = read_object(found[CONFIG_NAME], CONFIG_NAME) if CONFIG_NAME in found else new
        stated = read_object(found[MAP_NAME], MAP_NAME) if MAP_NAME in found else {}
        named = self.named_tokens()
        texts = {name: text_of(stated.get(name) or config.get(name)) for name in SPECIAL_NAMES}
        if CONFIG_NAME not in found or texts != dict.fromkeys(SPECIAL_NAMES) | named:
            config = {**config, **dict.fromkeys(SPECIAL_NAMES), **named}
            text = json.dumps(config, ensure_ascii=False, indent=2) + "\n"
            found[CONFIG_NAME] = text.encode("utf-8")
            found.pop(MAP_NAME, None)
        return found

    def encode_packed(
        self, texts: Sequence[str], *, threads: int = 1, end_id: int | None = None
    ) -> "tuple[np.ndarray, np.ndarray]":
        """As of `Tokenizer`; the library, if there is no C++ encoder, uses one thread."""
        is_wide = self.vocab_size >= MAX_NARROW_VOCAB
        encoder = self._fast_path.encoder
        if encoder is None:
            lists = self._encode_by_library(texts)
            return pack(lists, is_wide=is_wide, end_id=end_id)
        try:
            return encoder.encode(texts, threads, is_wide, end_id)
        except ValueError:
            check_surrogates(texts)
            raise

    def spot_check(self, texts: Sequence[str]) -> None:
        """As of `Tokenizer`, with the `tokenizers` library."""
        if self._fast_path.encoder is None:
            return
        import tokenizers

        library = f"tokenizers {tokenizers.__version__}"
        self._require_same(texts, self._encode_by_library(texts), library)

    def decode(self, ids: Iterable[int], *, keep_special: bool = False) -> str:
        """As of `Tokenizer`; `decode(encode(text)) == text` unless the text is normalised."""
        parts = []
        for index in map(int, ids):
            self._check_id(index)
            if keep_special or not self.is_special(index):
                parts.append(self._bytes_of(index))
        return b"".join(parts).decode("utf-8", "replace")

    def token(self, index: int) -> str:
        """As of `Tokenizer`: readable text, not the byte-level spelling."""
        self._check_id(index)
        if index in self._added_text:
            return self._added_text[index]
        return readable(self._bytes_of(index)).replace(" ", SPACE)

    def find(self, text: str) -> int | None:
        """The id of an added token, or of the entry for exactly this text, or None."""
        return self._content.find(text)

    def is_control(self, index: int) -> bool:
        """Whether no text gives this id: all added tokens but words."""
        return index in self._added_text and index not in self._words

    def is_special(self, index: int) -> bool:
        """Whether an id is structure: a token marked special, or the end or padding id."""
        return index in self._special_ids or index in (self.bos_id, self.eos_id, self.pad_id)

    def with_special(self, special: SpecialTokens) -> "ByteBpeTokenizer":
        """The same vocabulary with other special ids; other ids are unchanged."""
        other = copy.copy(self)
        other.special = special
        return other

    @functools.cached_property
    def _fast_path(self) -> FastPath:
        return load_byte_fast_path(
            self._content.vocabulary, self._content.raw, has_words=bool(self._words)
        )

    @functools.cached_property
    def _library(self) -> "tokenizers.Tokenizer":
        import tokenizers

        text = without_structure(self._files[JSON_NAME], self._content)
        try:
            library = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception
            raise DataError(
                f"{self._source} cannot be read by tokenizers {tokenizers.__version__}: {error}. "
                "Restore the file."
            ) from None
        library.encode_special_tokens = True
        return library

    def _encode_by_library(self, texts: Sequence[str]) -> list[list[int]]:
        """The reference. One text at a time: a batch would start the library's own threads."""
        check_surrogates(texts)
        encode = self._library.encode
        return [encode(text, add_special_tokens=False).ids for text in texts]

    def _bytes_of(self, index: int) -> bytes:
        if index in self._added_text:
            return self._added_text[index].encode("utf-8")
        return to_bytes(self._content.spelling(index))

    def _check_structure(self) -> None:
        """Refuses a vocabulary in which text can spell structure.

        Only an added token that has an entry in the vocabulary too can be reached by merges.
        """
        find = self._content.vocabulary.find
        texts = [text for text in self.added_tokens if set(text) <= BYTE_OF.keys()]
        texts = [text for text in texts if find(text) is not None]
        for text in texts:
            index = self.added_tokens[text]
            if self.is_control(index) and index in self._encode_by_library([text])[0]:
                raise DataError(
                    f"{self._source}: text can spell the added token {text!r}, because the "
                    "vocabulary has it as an ordinary entry. Its ids are not safe."
                )


def usual_special(added: Mapping[str, int]) -> SpecialTokens | None:
    """The special ids of well-known names, for a file that comes without those that name them.

    Args:
        added: Added tokens, text to id.

    Returns:
        None if none of them ends a sequence.
    """
    ends = (added[text] for text in (*DOCUMENT_ENDS, *TURN_ENDS) if text in added)
    begins = (added[text] for text in BEGINS if text in added)
    eos_id = next(ends, None)
    if eos_id is None:
        return None
    return SpecialTokens(
        bos_id=next(begins, None), eos_id=eos_id, unk_id=None, pad_id=None, add_bos=False
    )
