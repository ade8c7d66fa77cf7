"""Whether texts encoded separately can be concatenated into one text with the same ids.

`transformers` encodes a conversation as one text. Where two of our segments meet in it, a space
takes the place of the dummy prefix of the second, provided that no piece of the model spans it.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from megatron_chimed.tokenizer.model_proto import NORMAL, USER_DEFINED, parse_model
from megatron_chimed.tokenizer.sentencepiece_tokenizer import SentencePieceTokenizer
from megatron_chimed.tokenizer.tokenizer import Tokenizer

SPACES = (" ", "\u2581")
"""Characters that sentencepiece treats as a space."""


@dataclass(frozen=True, kw_only=True)
class Concatenation:
    """How two separately encoded texts can be concatenated."""

    fault: str
    """Why they cannot; empty: with a space between them."""

    joins_spaces: bool
    """Whether spaces at the end of the first text would merge with that space."""


def concatenation_of(tokenizer: Tokenizer) -> Concatenation:
    """Derived from the settings and pieces of the model, without encoding anything."""
    if not isinstance(tokenizer, SentencePieceTokenizer):
        fault = "the tokenizer puts no space before a text"
        return Concatenation(fault=fault, joins_spaces=True)
    proto = parse_model(tokenizer.model_bytes)
    normalizer = proto.normalizer_spec
    fault = ""
    crossing = [
        piece.piece
        for piece in proto.pieces
        if piece.type in (NORMAL, USER_DEFINED)
        and re.search(f"[^{''.join(SPACES)}][{''.join(SPACES)}]", piece.piece)
    ]
    if not normalizer.add_dummy_prefix or proto.trainer_spec.treat_whitespace_as_suffix:
        fault = "the tokenizer puts no space before a text"
    elif crossing:
        fault = f"the tokenizer has pieces such as {crossing[0]!r} that span a space"
    elif normalizer.precompiled_charsmap and not normalizer.remove_extra_whitespaces:
        fault = "the tokenizer turns other characters into spaces and keeps them"
    return Concatenation(fault=fault, joins_spaces=not normalizer.remove_extra_whitespaces)


def overlapping(texts: Iterable[str], *, or_begin: bool = False) -> tuple[str, str] | None:
    """Two texts of which the second can begin inside the first and end after it, or None.

    Args:
        texts: The texts.
        or_begin: Also finds a text that starts with another, or can begin inside itself.
    """
    texts = list(texts)
    for first in texts:
        ends = {first[at:] for at in range(0 if or_begin else 1, len(first))}
        for second in texts:
            starts = (second[:at] for at in range(1, len(second)))
            if (or_begin or first != second) and any(start in ends for start in starts):
                return first, second
    return None


def recognised_only_by_transformers(tokenizer: Tokenizer) -> list[str]:
    """Tokens that transformers recognises in text and we do not: `</s>`, `<|im_end|>`."""
    if not isinstance(tokenizer, SentencePieceTokenizer):
        return [text for text in tokenizer.added_tokens if text not in tokenizer.recognised]
    named = (tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id, tokenizer.pad_id)
    control = [index for index in range(tokenizer.model_size) if tokenizer.is_control(index)]
    texts = [tokenizer.token(index) for index in (*named, *control) if index is not None]
    return [text for text in dict.fromkeys(texts) if text not in tokenizer.added_tokens]
