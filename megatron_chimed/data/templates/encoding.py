"""Encodes conversations and rankings as token ids and loss masks.

Invariant: the end token is supervised for exactly the answers that are supervised whole, so there
are as many supervised end tokens as supervised answers that were not cut. What does not fit is
dropped or cut by one policy, and every result records what happened to it.

Policy for `seq_length`: turns are kept in order while they fit; the first turn that does not fit
ends the conversation. So what is kept is a prefix of the conversation with whole answers. If not
even the first turn fits, the conversation is dropped, or with `truncation="cut"` its first answer
is cut: what remains of it is learned, but without an end token, since the answer did not end there.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from megatron_chimed.data.formats.example import Conversation, Ranking
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
    cleaned = [template.without_tags(conversation) for conversation in conversations]
    kind: Targets = "all" if targets == "all" else "answers"  # the last that fits is found later
    rendered = [template.render(conversation, targets=kind) for conversation, _ in cleaned]
    pieces = _encode_segments(tokenizer, [s for turns in rendered for turn in turns for s in turn])
    encoded = []
    for turns, (_, tags_removed) in zip(rendered, cleaned, strict=True):
        parts = [[(next(pieces), segment.is_target) for segment in turn] for turn in turns]
        if any(len(turn[-2][0]) == 0 for turn in parts):
            encoded.append(Dropped(reason=EMPTY_ANSWER))
            continue
        kept, cut = _fit(parts, seq_length, truncation)
        if not kept:
            encoded.append(Dropped(reason=TOO_LONG))
            continue
        ids, mask = _join([part for turn in kept for part in turn])
        if targets == "last":
            mask[: len(mask) - sum(len(ids) for ids, _ in kept[-1])] = 0
        learned = [turn[-1][1] for turn in (kept[-1:] if targets == "last" else kept)]
        if not any(learned):
            encoded.append(Dropped(reason=NOT_LEARNED))
            continue
        end_tokens = sum(learned) - cut
        mask[0] = 0
        encoded.append(
            Encoded(
                ids=ids,
                mask=mask,
                end_tokens=end_tokens,
                cut=cut,
                dropped_turns=len(parts) - len(kept),
                tags_removed=tags_removed,
            )
        )
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
    rendered = []
    for ranking in rankings:
        prompt, tags_removed = template.without_tags(ranking.prompt)
        segments = template.render_prompt(prompt, for_generation=False)
        answers, found = _candidate_segments(template, ranking)
        rendered.append((segments + answers, tags_removed + found))
    pieces = _encode_segments(tokenizer, [s for segments, _ in rendered for s in segments])
    encoded = []
    for ranking, (segments, tags_removed) in zip(rankings, rendered, strict=True):
        parts = [(next(pieces), segment.is_target) for segment in segments]
        first = len(parts) - 2 * len(ranking.candidates)
        answers = [parts[place : place + 2] for place in range(first, len(parts), 2)]
        limit = _candidate_limit(parts[:first], answers, seq_length, truncation)
        fitted = [_fit([parts[:first] + answer], limit, truncation) for answer in answers]
        reason = _fault(ranking, answers, fitted)
        if reason:
            encoded.append(Dropped(reason=reason))
            continue
        joined = [_join(turns[0]) for turns, _ in fitted]
        cut = sum(is_cut for _, is_cut in fitted)
        encoded.append(
            EncodedRanking(
                ids=tuple(ids for ids, _ in joined),
                masks=tuple(mask for _, mask in joined),
                prompt_length=sum(len(ids) for ids, _ in parts[:first]),
                end_tokens=len(joined) - cut,
                cut=cut,
                tags_removed=tags_removed,
            )
        )
    return encoded


def _candidate_segments(template: Template, ranking: Ranking) -> tuple[list[Segment], int]:
    """Two segments per candidate, the text and its end, and how many tags were removed."""
    segments: list[Segment] = []
    tags_removed = 0
    reasonings = ranking.reasonings or ("",) * len(ranking.candidates)
    for candidate, reasoning in zip(ranking.candidates, reasonings, strict=True):
        text, found = template.remove_tags(candidate)
        thoughts, more = template.remove_tags(reasoning)
        tags_removed += found + more
        text = template.answer(text, thoughts)
        segments += [Segment(text, is_target=True), Segment(control="eos", is_target=True)]
    return segments, tags_removed


def encode_prompts(
    tokenizer: Tokenizer, template: Template, conversations: Sequence[Conversation]
) -> list[list[int]]:
    """Ids up to the start of the last answer, for generation.

    Args:
        tokenizer: Encodes each segment separately, all in one call.
        template: The chat template.
        conversations: Conversations whose last answer is "".
    """
    rendered = [template.render_prompt(template.without_tags(item)[0]) for item in conversations]
    pieces = _encode_segments(tokenizer, [s for segments in rendered for s in segments])
    return [[int(i) for _ in segments for i in next(pieces)] for segments in rendered]


SegmentIds = tuple[np.ndarray, bool]  # the ids, and whether they are learned


def _encode_segments(tokenizer: Tokenizer, segments: Sequence[Segment]) -> Iterator[np.ndarray]:
    """The ids of each segment."""
    packed, lengths = tokenizer.encode_packed([s.text for s in segments if not s.control])
    ends = iter(np.cumsum(lengths).tolist())
    eos = np.array([tokenizer.eos_id], packed.dtype)
    # Without a begin-of-sequence token, the template's is skipped, as in transformers.
    bos = np.array([] if tokenizer.bos_id is None else [tokenizer.bos_id], packed.dtype)
    start = 0
    for segment in segments:
        if segment.control:
            yield eos if segment.control == "eos" else bos
        else:
            end = next(ends)
            yield packed[start:end]
            start = end


def _fit(
    turns: list[list[SegmentIds]], seq_length: int | None, truncation: Truncation
) -> tuple[list[list[SegmentIds]], bool]:
    """The turns that fit, and whether the first answer was cut."""
    if seq_length is None:
        return turns, False
    ends = itertools.accumulate(sum(len(ids) for ids, _ in turn) for turn in turns)
    fitting = sum(end <= seq_length for end in ends)
    if fitting > 0 or truncation == "drop":
        return turns[:fitting], False
    *prompt, (answer, is_target), _ = turns[0]
    room = seq_length - sum(len(ids) for ids, _ in prompt)
    return ([[*prompt, (answer[:room], is_target)]], True) if room > 0 else ([], False)


def _candidate_limit(
    prompt: Sequence[SegmentIds],
    answers: Sequence[Sequence[SegmentIds]],
    seq_length: int | None,
    truncation: Truncation,
) -> int | None:
    """Maximum tokens of a candidate with its prompt so that all candidates fit; None: no limit."""
    start = sum(len(ids) for ids, _ in prompt)
    lengths = sorted(sum(len(ids) for ids, _ in answer) for answer in answers)
    if seq_length is None or start * len(lengths) + sum(lengths) <= seq_length:
        return None
    if truncation == "drop":
        return 0
    room, limit = seq_length - start * len(lengths), 0
    for place, length in enumerate(lengths):  # room left by short ones goes to longer ones
        limit = room // (len(lengths) - place)
        if length > limit:
            break
        room -= length
    return start + max(limit, 0)


def _fault(
    ranking: Ranking,
    answers: list[list[SegmentIds]],
    fitted: list[tuple[list[list[SegmentIds]], bool]],
) -> str:
    """Why nothing can be learned from a ranking, or ""."""
    if any(len(answer[0][0]) == 0 for answer in answers):
        return EMPTY_ANSWER
    if not all(turns for turns, _ in fitted):
        return TOO_LONG
    rank_of: dict[bytes, int] = {}
    for ([turn], _), rank in zip(fitted, ranking.ranks, strict=True):
        if rank_of.setdefault(_join(turn)[0].tobytes(), rank) != rank:
            return SAME_CANDIDATES
    return ""


def _join(parts: Sequence[SegmentIds]) -> tuple[np.ndarray, np.ndarray]:
    ids = np.concatenate([ids for ids, _ in parts])
    lengths = [len(ids) for ids, _ in parts]
    mask = np.repeat(np.array([is_target for _, is_target in parts], np.uint8), lengths)
    return ids, mask
