"""A sentencepiece BPE model as settings of the `tokenizers` library: exactly, or not at all."""

import dataclasses
import graphlib
from typing import Any

from megatron_chimed.errors import DataError
from megatron_chimed.tokenizer.bpe_merges import (
    Builds,
    Pair,
    builds_of,
    in_order,
    without_own_piece,
)
from megatron_chimed.tokenizer.leftmost_words import listed_pieces, segments_pattern, top_words
from megatron_chimed.tokenizer.model_proto import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
)

WAY_OUT = (
    "Export with --weights-only and tokenize with tokenizer.model itself, as the slow "
    'LlamaTokenizer of transformers 4.46 does: LlamaTokenizer("tokenizer.model", legacy=True). '
    "transformers 5 has no slow tokenizers."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BpeExport:
    """What gives the ids of a sentencepiece BPE model in `tokenizers`."""

    merges: list[Pair]
    """First to last."""

    segments: str | None
    """The expression that cuts a text into segments, each of which is looked up whole and otherwise
    merged; None: the text is one segment and only merged."""


def export_bpe(proto: Any) -> BpeExport:
    """Proves an order of merges exact, if need be with the top words cut out beforehand.

    Takes about 2 s for 50,000 pieces.

    Raises:
        DataError: There is none; says which pieces are the reason.
    """
    for piece in proto.pieces:
        if piece.type in (UNUSED, USER_DEFINED):
            kind = "unused" if piece.type == UNUSED else "user-defined"
            raise _refusal(f"piece {piece.piece!r} is {kind}")
    builds = builds_of(proto)
    alien = without_own_piece(builds, builds.pairs)
    try:
        order = [] if alien else in_order(builds, builds.pairs.keys())
    except graphlib.CycleError as error:
        circle = error.args[1]
    else:
        if not alien:
            return BpeExport(merges=[builds.pairs[piece] for piece in order], segments=None)
        circle = []
    return _cut_out(proto, builds, circle)


def _cut_out(proto: Any, builds: Builds, circle: list[str]) -> BpeExport:
    """The export with the closed top words as segments of their own."""
    words = top_words(builds)
    listed = listed_pieces(builds, words)
    alien = without_own_piece(builds, listed)
    if alien:
        raise _refusal(f"piece {alien[0]!r} has a character that is no piece")
    if not words.closed:
        raise _refusal(_tied(circle))
    try:
        order = in_order(builds, listed)
    except graphlib.CycleError as error:
        raise _refusal(_tied(error.args[1])) from None
    has_bytes = any(piece.type == BYTE for piece in proto.pieces)
    # transformers cuts control pieces out of a text before it normalizes what is left.
    hidden = () if proto.normalizer_spec.precompiled_charsmap else (CONTROL, UNKNOWN)
    never = [piece.piece for piece in proto.pieces if piece.type not in (NORMAL, *hidden)]
    never += [piece for piece in builds.scores if not builds.is_reachable(piece)]
    splits_unknown = has_bytes and proto.trainer_spec.byte_fallback
    try:
        pattern = segments_pattern(builds, words, never, splits_unknown=splits_unknown)
    except ValueError as error:
        raise _refusal(f"entry {error.args[0]!r} spells text that no piece does") from None
    return BpeExport(merges=[builds.pairs[piece] for piece in order], segments=pattern)


def _tied(circle: list[str]) -> str:
    names = ", ".join(map(repr, dict.fromkeys(circle)))
    return f"the pieces {names} have equal scores and overlap in a circle"


def _refusal(reason: str) -> DataError:
    return DataError(
        "the fast tokenizers of transformers cannot give the ids of this tokenizer.model: "
        f"{reason}. Some texts would get other tokens than in training. {WAY_OUT}"
    )
