"""Encodes conversations and rankings as token ids and loss masks.

Invariant: the end token is supervised for exactly the answers that are supervised whole, so there
are as many supervised end tokens as supervised answers that were not cut. What does not fit is
dropped or cut by one policy, and every result records what happened to it.

Policy for `seq_length`: turns are kept in order while they fit; the first turn that does not fit
ends the conversation. So what is kept is a prefix of the conversation with whole answers. If not
even the first turn fits, the conversation is dropped, or with `truncation="cut"` its first answer
is cut: what remains of it is learned, but without an end token, since the answer did not end there.
A template that renders the last turn differently renders again what is kept.
"""

import dataclasses
import functools
import itertools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from megatron_chimed.data.formats.example import Conversation, Ranking, Turn
from megatron_chimed.data.templates.named import require_fit
from megatron_chimed.data.templates.pieces import TurnIds, encode_turns
from megatron_chimed.data.templates.template import Segment, Targets, Template
from megatron_chimed.tokenizer import Tokenizer

Truncation = Literal["drop", "cut"]
TRUNCATIONS: tuple[Truncation, ...] = ("drop", "cut")

TOO_LONG = "too_long"
EMPTY_ANSWER = "empty_answer"
NOT_LEARNED = "not_learned"
SAME_CANDIDATES = "same_candidates"


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """One conversation."""

    ids: np.ndarray
    """`[tokens]`, in the dtype of the tokenizer's ids."""

    mask: np.ndarray
    """uint8 `[tokens]`; 1: the model learns to generate this token."""

    end_tokens: int
    """Supervised end tokens."""

    cut: bool = False
    """Whether the only answer was cut and has no end token."""

    dropped_turns: int = 0
    """Turns dropped at the end because they did not fit."""

    tags_removed: int = 0
    """Template tags removed from its texts."""


@dataclass(frozen=True, kw_only=True)
class EncodedRanking:
    """Candidates that answer one prompt, in the order of the ranking."""

    ids: tuple[np.ndarray, ...]
    """Per candidate `[prompt + answer]`, in the dtype of the tokenizer's ids."""

    masks: tuple[np.ndarray, ...]
    """Per candidate uint8 `[prompt + answer]`; 1: a token of the answer or its end."""

    prompt_length: int
    """Number of prompt tokens that all candidates start with."""

    end_tokens: int
    """Supervised end tokens of all candidates."""

    cut: int = 0
    """Number of candidates that were cut and have no end token."""

    tags_removed: int = 0
    """Template tags removed from its texts."""


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """An example that was dropped because nothing is left to learn."""

    reason: str
    """`too_long`; `empty_answer`: an answer has no token; `not_learned`: the answers that are left
    are masked; `same_candidates`: cutting made two candidates of different rank equal."""


def encode_conversations(
    tokenizer: Tokenizer,
    template: Template,
    conversations: Sequence[Conversation],
    *,
    targets: Targets = "answers",
    seq_length: int | None = None,
    truncation: Truncation = "drop",
) -> list[Encoded | Dropped]:
    """Encodes conversations, all their segments in one call of the tokenizer.

    Args:
        tokenizer: Encodes each segment separately.
        template: The chat template.
        conversations: Conversations with a last answer.
        targets: What is learned: `answers` with their end tokens, the `last` one that fits, or
            `all` tokens but the first, which is never predicted.
        seq_length: Maximum tokens of a sequence; None: no limit.
        truncation: What happens to a first turn that does not fit.

    Returns:
        One entry per conversation, in order.
    """
    require_fit(template, tokenizer)
    tags = template.tags_for(tokenizer)
    cleaned = [tags.clean(conversation) for conversation in conversations]
    kind: Targets = "all" if targets == "all" else "answers"  # the last that fits is found later
    rendered = [template.render(conversation, targets=kind) for conversation, _ in cleaned]
    turns = iter(encode_turns(tokenizer, template, [turn for entry in rendered for turn in entry]))
    again = functools.partial(
        encode_conversations,
        tokenizer,
        template,
        targets=targets,
        seq_length=seq_length,
        truncation=truncation,
    )
    encoded: list[Encoded | Dropped] = []
    for conversation, removed in cleaned:
        parts = list(itertools.islice(turns, len(conversation.turns)))
        num_fitting = _num_fitting(parts, seq_length)
        num_kept = max(num_fitting, 1)
        if any(map(_is_empty, conversation.turns, parts)):
            item = Dropped(reason=EMPTY_ANSWER)
        elif template.needs_last_turn and num_kept < len(parts):
            kept = dataclasses.replace(conversation, turns=conversation.turns[:num_kept])
            [item] = again([kept])
        elif num_fitting or truncation == "cut":
            item = _encoded(parts[:num_kept], targets, None if num_fitting else seq_length)
        else:
            item = Dropped(reason=TOO_LONG)
        if isinstance(item, Encoded):
            dropped = item.dropped_turns + len(parts) - num_kept
            item = dataclasses.replace(item, dropped_turns=dropped, tags_removed=removed)
        encoded.append(item)
    return encoded


def encode_rankings(
    tokenizer: Tokenizer,
    template: Template,
    rankings: Sequence[Ranking],
    *,
    seq_length: int | None = None,
    truncation: Truncation = "drop",
) -> list[EncodedRanking | Dropped]:
    """Encodes rankings: the prompt as in training data, then each candidate with its end token.

    Only the candidates are supervised. All candidates of a ranking share one training sample, each
    with its own copy of the prompt, so a ranking fits only as a whole. One that does not fit is
    dropped; with `truncation="cut"` its longest candidates are cut to one length instead, without
    end tokens.

    Args:
        tokenizer: Encodes each segment separately, all in one call.
        template: The chat template.
        rankings: Rankings of candidates.
        seq_length: Maximum tokens of all candidates together, each with the prompt before it; None:
            no limit.
        truncation: What happens to a ranking that does not fit.

    Returns:
        One entry per ranking, in order.
    """
    require_fit(template, tokenizer)
    tags = template.tags_for(tokenizer)
    turns: list[list[Segment]] = []
    num_removed = []
    for ranking in rankings:
        prompt, removed = tags.clean(ranking.prompt)
        *earlier, last = prompt.turns
        earlier = [dataclasses.replace(turn, is_learned=False) for turn in earlier]
        reasonings = ranking.reasonings or ("",) * len(ranking.candidates)
        for candidate, reasoning in zip(ranking.candidates, reasonings, strict=True):
            text, found = tags.remove(candidate)
            thoughts, more = tags.remove(reasoning)
            removed += found + more
            answered = dataclasses.replace(last, answer=text, reasoning=thoughts, is_learned=True)
            conversation = dataclasses.replace(prompt, turns=(*earlier, answered))
            turns.append(_flatten(template.render(conversation, targets="last")))
        num_removed.append(removed)
    ids = iter(encode_turns(tokenizer, template, turns))
    encoded = []
    for ranking, removed in zip(rankings, num_removed, strict=True):
        parts = list(itertools.islice(ids, len(ranking.candidates)))
        item = _encoded_ranking(ranking, parts, seq_length, truncation)
        if isinstance(item, EncodedRanking):
            item = dataclasses.replace(item, tags_removed=removed)
        encoded.append(item)
    return encoded


def encode_prompts(
    tokenizer: Tokenizer, template: Template, conversations: Sequence[Conversation]
) -> list[list[int]]:
    """Ids up to the start of the last answer, for generation.

    Args:
        tokenizer: Encodes each segment separately, all in one call.
        template: The chat template.
        conversations: Conversations whose last answer is "".
    """
    require_fit(template, tokenizer)
    tags = template.tags_for(tokenizer)
    rendered = [template.render_prompt(tags.clean(item)[0]) for item in conversations]
    encoded = encode_turns(tokenizer, template, rendered)
    return [np.concatenate(prompt.ids).tolist() for prompt in encoded]


def _is_empty(turn: Turn, ids: TurnIds) -> bool:
    """Whether there is no answer to learn; marks around it are none."""
    return ids.answer_length == 0 or not (turn.answer or turn.steps)


def _num_fitting(turns: Sequence[TurnIds], seq_length: int | None) -> int:
    if seq_length is None:
        return len(turns)
    ends = itertools.accumulate(turn.length for turn in turns)
    return sum(end <= seq_length for end in ends)


def _encoded(turns: Sequence[TurnIds], targets: Targets, room: int | None) -> Encoded | Dropped:
    """The turns that are kept.

    Args:
        turns: One or more.
        targets: As of `encode_conversations`.
        room: Tokens at which the answer of the only turn is cut; None: it is whole.
    """
    if room is not None and room <= turns[0].answer_start:
        return Dropped(reason=TOO_LONG)
    ids, mask = _join(turns)
    learned = turns[-1:] if targets == "last" else turns
    if targets == "last":
        mask[: len(mask) - turns[-1].length] = 0
    if not any(turn.is_end_learned for turn in learned):
        return Dropped(reason=NOT_LEARNED)
    is_cut = room is not None
    mask[0] = 0
    return Encoded(
        ids=ids[:room],
        mask=mask[:room],
        end_tokens=sum(turn.end_tokens for turn in learned) - is_cut,
        cut=is_cut,
    )


def _encoded_ranking(
    ranking: Ranking, turns: Sequence[TurnIds], seq_length: int | None, truncation: Truncation
) -> EncodedRanking | Dropped:
    """The candidates of a ranking, each with its prompt in one `TurnIds`."""
    if any(map(_is_empty_candidate, ranking.candidates, turns)):
        return Dropped(reason=EMPTY_ANSWER)
    # A candidate that starts with a line break may share a token with the prompt.
    start = min(turn.answer_start for turn in turns)
    limit = _candidate_limit(start, [turn.length for turn in turns], seq_length, truncation)
    room = max(turn.length for turn in turns) if limit is None else limit
    is_cut = [turn.length > room for turn in turns]
    too_long = [truncation == "drop" or room <= turn.answer_start for turn in turns]
    if any(map(operator.and_, is_cut, too_long)):
        return Dropped(reason=TOO_LONG)
    joined = [(ids[:room], mask[:room]) for ids, mask in (_join([turn]) for turn in turns)]
    rank_of: dict[bytes, int] = {}
    for (ids, _), rank in zip(joined, ranking.ranks, strict=True):
        if rank_of.setdefault(ids.tobytes(), rank) != rank:
            return Dropped(reason=SAME_CANDIDATES)
    return EncodedRanking(
        ids=tuple(ids for ids, _ in joined),
        masks=tuple(mask for _, mask in joined),
        prompt_length=start,
        end_tokens=len(joined) - sum(is_cut),
        cut=sum(is_cut),
    )


def _is_empty_candidate(text: str, ids: TurnIds) -> bool:
    return _is_empty(Turn("", text), ids)


def _candidate_limit(
    start: int, lengths: Sequence[int], seq_length: int | None, truncation: Truncation
) -> int | None:
    """Maximum tokens of a candidate with its prompt so that all candidates fit; None: no limit.

    Args:
        start: Tokens of the prompt.
        lengths: Tokens of each candidate, with its prompt.
        seq_length: As of `encode_rankings`.
        truncation: As of `encode_rankings`.
    """
    if seq_length is None or sum(lengths) <= seq_length:
        return None
    if truncation == "drop":
        return 0
    room, limit = seq_length - start * len(lengths), 0
    for place, length in enumerate(sorted(length - start for length in lengths)):
        limit = room // (len(lengths) - place)  # room left by short ones goes to longer ones
        if length > limit:
            break
        room -= length
    return start + max(limit, 0)


def _flatten(turns: Sequence[Sequence[Segment]]) -> list[Segment]:
    """The turns as one, whose answer is the last one."""
    *earlier, last = turns
    context = [dataclasses.replace(s, part="prompt") for turn in earlier for s in turn]
    return [*context, *last]


def _join(turns: Sequence[TurnIds]) -> tuple[np.ndarray, np.ndarray]:
    ids = np.concatenate([ids for turn in turns for ids in turn.ids])
    counts = [count for turn in turns for count in turn.counts]
    return ids, np.repeat(np.arange(len(counts), dtype=np.uint8) % 2, counts)
