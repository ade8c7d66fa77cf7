"""Whether texts that are encoded alone can be written one after another and still give their ids.

`transformers` encodes a conversation as one text. Where two of ours meet in it, a space takes the
place of the second one's dummy prefix, if the model lets nothing join across it.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from megatron_chimed.tokenizer.tokenizer import Tokenizer

SPACES = (" ", "\u2581")
"""What sentencepiece takes for a space."""


@dataclass(frozen=True, kw_only=True)
class Joints:
    """How two texts can meet."""

    fault: str
    """Why they cannot; empty: with a space between them."""

    joins_spaces: bool
    """Whether spaces at the end of the first would become one piece with it."""


def joints_of(tokenizer: Tokenizer) -> Joints:
    """Reads it from the model: every piece is looked at, no text is tried."""
    from sentencepiece import sentencepiece_model_pb2 as pb2  # slow, and seldom needed

    proto = pb2.ModelProto.FromString(tokenizer.model_bytes)
    normalizer, kind = proto.normalizer_spec, pb2.ModelProto.SentencePiece
    fault = ""
    crossing = [
        piece.piece
        for piece in proto.pieces
        if piece.type in (kind.NORMAL, kind.USER_DEFINED)
        and re.search(f"[^{''.join(SPACES)}][{''.join(SPACES)}]", piece.piece)
    ]
    if not normalizer.add_dummy_prefix or proto.trainer_spec.treat_whitespace_as_suffix:
        fault = "the tokenizer puts no space before a text"
    elif crossing:
        fault = f"the tokenizer has pieces such as {crossing[0]!r} that go on over a space"
    elif normalizer.precompiled_charsmap and not normalizer.remove_extra_whitespaces:
        fault = "the tokenizer makes spaces of other characters, and keeps them"
    return Joints(fault=fault, joins_spaces=not normalizer.remove_extra_whitespaces)


def overlapping(texts: Iterable[str], *, or_begin: bool = False) -> tuple[str, str] | None:
    """Two texts of which the second can begin inside the first and end behind it, or None.

    Args:
        texts: The texts.
        or_begin: Also two of which the second begins with the whole first, or one that can begin
            inside itself.
    """
    texts = list(texts)
    for first in texts:
        ends = {first[at:] for at in range(0 if or_begin else 1, len(first))}
        for second in texts:
            starts = (second[:at] for at in range(1, len(second)))
            if (or_begin or first != second) and any(start in ends for start in starts):
                return first, second
    return None


def recognised_alone_by_transformers(tokenizer: Tokenizer) -> list[str]:
    """Tokens that transformers finds in a text where we read characters: `<s>`, `</s>`, `<unk>`."""
    named = (tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id, tokenizer.pad_id)
    control = [index for index in range(tokenizer.model_size) if tokenizer.is_control(index)]
    texts = [tokenizer.token(index) for index in (*named, *control) if index is not None]
    return [text for text in dict.fromkeys(texts) if text not in tokenizer.added_tokens]
