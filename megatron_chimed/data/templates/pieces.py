"""Segments to ids: which texts are encoded as one, and which of their tokens are learned.

A joined template's texts are encoded from one control token to the next. Such a piece may begin
with the end of a prompt (`assistant`, a line break) and continue with what is learned, and one
token may hold some of both. In generation the prompt is encoded without what follows. So the tokens
that the piece shares with its unlearned beginning alone are not learned, and all others are.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from megatron_chimed.data.templates.template import Segment, Template
from megatron_chimed.tokenizer import Tokenizer


@dataclass(slots=True, kw_only=True)
class TurnIds:
    """The ids of a turn, in pieces."""

    ids: list[np.ndarray] = field(default_factory=list)
    """One array per piece, in the dtype of the tokenizer's ids."""

    counts: list[int] = field(default_factory=list)
    """Two per piece: its first tokens, which are not learned, then those that are."""

    length: int = 0
    """Number of tokens."""

    answer_start: int = 0
    """Tokens before the last answer."""

    answer_length: int = 0
    """Tokens of that answer, without its end."""

    end_tokens: int = 0
    """Learned end tokens: of the answer, and of calls of tools before it."""

    is_end_learned: bool = False
    """Whether the end of the answer is one of them."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """A control token, or texts that are encoded as one."""

    segments: Sequence[Segment]

    control: int | None = None
    """The id of the token; None for texts."""

    @property
    def text(self) -> str:
        return "".join(segment.text for segment in self.segments)

    @property
    def unlearned(self) -> str:
        """Its beginning that is not learned."""
        first = itertools.takewhile(lambda segment: not segment.is_target, self.segments)
        return "".join(segment.text for segment in first)

    @property
    def before_answer(self) -> str:
        """Its beginning that is not the answer."""
        first = itertools.takewhile(lambda segment: segment.part == "prompt", self.segments)
        return "".join(segment.text for segment in first)


def encode_turns(
    tokenizer: Tokenizer, template: Template, turns: Iterable[Sequence[Segment]]
) -> list[TurnIds]:
    """The ids of rendered turns, all their texts in one call of the tokenizer.

    Args:
        tokenizer: A tokenizer that the template fits.
        template: The template that rendered them.
        turns: Segments of turns.
    """
    controls = _Controls(tokenizer)
    pieces = [list(_pieces(turn, controls, is_joined=template.is_joined)) for turn in turns]
    texts: dict[str, None] = {}
    for piece in itertools.chain.from_iterable(pieces):
        if piece.control is None:
            texts.update(dict.fromkeys((piece.text, piece.unlearned, piece.before_answer)))
    packed, lengths = tokenizer.encode_packed(list(texts))
    ends = np.cumsum(lengths).tolist()
    spans = zip([0, *ends], ends, strict=False)
    ids_of = {text: packed[start:end] for text, (start, end) in zip(texts, spans, strict=True)}
    end_id = template.stop_ids(tokenizer)[0]
    return [_assemble(turn, ids_of, packed.dtype, end_id) for turn in pieces]


class _Controls:
    """Ids of control segments."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._found: dict[str, int | None] = {}

    def id_of(self, segment: Segment) -> int | None:
        """None for a text: also for a token that only other vocabularies have."""
        if segment.control != "token":
            return self._tokenizer.eos_id if segment.control == "eos" else self._tokenizer.bos_id
        if segment.text not in self._found:
            self._found[segment.text] = self._tokenizer.find(segment.text)
        return self._found[segment.text]


def _pieces(
    segments: Sequence[Segment], controls: _Controls, *, is_joined: bool
) -> Iterator[_Piece]:
    texts: list[Segment] = []
    for segment in segments:
        control = controls.id_of(segment) if segment.control else None
        if control is None and segment.control == "bos":
            continue  # as in transformers: the tokenizer has no such token
        if control is None and is_joined:
            texts.append(segment)
            continue
        if texts:
            yield _Piece(texts)
            texts = []
        yield _Piece([segment], control)
    if texts:
        yield _Piece(texts)


def _assemble(
    pieces: Sequence[_Piece], ids_of: dict[str, np.ndarray], dtype: np.dtype, end_id: int
) -> TurnIds:
    turn = TurnIds()
    for piece in pieces:
        first, last = piece.segments[0], piece.segments[-1]
        if piece.control is None:
            ids = ids_of[piece.text]
            unlearned = _num_shared(ids, ids_of[piece.unlearned])
            before_answer = _num_shared(ids, ids_of[piece.before_answer])
        else:
            ids = np.array([piece.control], dtype)
            unlearned = int(not first.is_target)
            before_answer = int(first.part == "prompt")
            if first.is_target and piece.control == end_id and first.control != "bos":
                turn.end_tokens += 1
                turn.is_end_learned |= first.part == "end"
        turn.ids.append(ids)
        turn.counts += [unlearned, len(ids) - unlearned]
        turn.length += len(ids)
        if last.part == "prompt":
            turn.answer_start += len(ids)
        elif last.part == "answer":
            turn.answer_start += before_answer
            turn.answer_length += len(ids) - before_answer
    return turn


def _num_shared(ids: np.ndarray, others: np.ndarray) -> int:
    """Tokens that both start with."""
    size = min(len(ids), len(others))
    differs = ids[:size] != others[:size]
    return int(differs.argmax()) if differs.any() else size
