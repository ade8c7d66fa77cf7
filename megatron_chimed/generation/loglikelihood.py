"""How likely a model finds each of several continuations of a text, and whether it would write it.

Multiple choice asks for this: many questions begin with the same instructions and examples (the
prefix), and the answers to one question often differ in their last token only.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from megatron_chimed.data.datasets.native import pack
from megatron_chimed.engine import relay_forward
from megatron_chimed.errors import ConfigError, DataError, NumericError
from megatron_chimed.generation.session import Session, vocab_size_of
from megatron_chimed.model import gather_vocabulary


@dataclass(frozen=True, kw_only=True)
class Continuations:
    """A context and what may follow it, as token ids."""

    context: tuple[int, ...]
    """What comes between the shared prefix and the continuations; may be empty after a prefix."""
    continuations: tuple[tuple[int, ...], ...]
    """Each at least one token."""


class LogLikelihood(NamedTuple):
    """How likely one continuation is."""

    log_prob: float
    """Natural logarithm of the model's own probability (temperature 1) of all its tokens."""
    is_greedy: bool
    """Whether each of its tokens is the most likely one: greedy decoding would write it."""


def log_likelihoods(
    session: Session,
    items: Sequence[Continuations],
    *,
    prefix: Sequence[int] = (),
    batch_tokens: int = 2048,
) -> list[list[LogLikelihood]]:
    """Log-likelihoods of continuations; every rank calls it with the same arguments.

    Args:
        session: Of a language model.
        items: Contexts with their continuations.
        prefix: Token ids that come before every context, such as a few-shot prompt.
        batch_tokens: Tokens in a forward pass, unless one item has more; changes speed and memory
            only.

    Returns:
        For each item one entry per continuation, in order, on every rank.

    Raises:
        ConfigError: `batch_tokens` is below 1.
        DataError: A continuation is empty, nothing comes before it, a sequence exceeds the model's
            positions, or holds ids outside its vocabulary.
        NumericError: A value is not finite.
    """
    if batch_tokens < 1:
        raise ConfigError(f"batch_tokens is {batch_tokens}: it counts tokens. Set 1 or more.")
    for index, item in enumerate(items):
        _check(session, index, item, tuple(prefix))
    stems = [_Stem(i, stem) for i, item in enumerate(items) for stem in _stems(item)]
    found: dict[tuple[int, int], LogLikelihood] = {}
    for members in _packs(session, items, stems, prefix, batch_tokens):
        found |= _measure(session, items, members, tuple(prefix))
    sent = [(*key, *value) for key, value in found.items() if session.ranks.tensor_rank == 0]
    every = session.ranks.agreement.on_all_ranks(lambda: sent)
    merged = {(i, j): LogLikelihood(*value) for part in every for i, j, *value in part}
    if not all(math.isfinite(value.log_prob) for value in merged.values()):
        raise NumericError(
            "the log-probability of a continuation is not finite: the weights are damaged or "
            "overflow in this precision. Try precision fp32, or an older checkpoint."
        )
    return [[merged[i, j] for j in range(len(item.continuations))] for i, item in enumerate(items)]


class _Stem(NamedTuple):
    """Continuations of one item that differ in their last token only are read off one place."""

    item: int
    tokens: tuple[int, ...]


def _stems(item: Continuations) -> list[tuple[int, ...]]:
    return [*dict.fromkeys(continuation[:-1] for continuation in item.continuations)]


def _packs(
    session: Session,
    items: Sequence[Continuations],
    stems: Sequence[_Stem],
    prefix: Sequence[int],
    batch_tokens: int,
) -> Iterator[list[_Stem]]:
    """This replica's share of the forward passes."""
    if not stems:
        return
    lengths = [len(prefix) + len(items[s.item].context) + len(s.tokens) for s in stems]
    members, starts = pack(np.array(lengths, np.int32), max(batch_tokens, *lengths))
    ranks = session.ranks
    for index in range(ranks.data_rank, len(starts) - 1, ranks.layout.data_parallel_size):
        yield [stems[member] for member in members[starts[index] : starts[index + 1]].tolist()]


def _measure(
    session: Session, items: Sequence[Continuations], stems: Sequence[_Stem], prefix: tuple
) -> dict[tuple[int, int], LogLikelihood]:
    """Runs stems end to end; results by (item, continuation) on the last stage, {} elsewhere."""
    rows = [(*prefix, *items[stem.item].context, *stem.tokens) for stem in stems]
    device = session.ranks.device
    tokens, positions, segments = (
        torch.tensor([values], device=device)
        for values in (
            [token for row in rows for token in row],
            [i for row in rows for i in range(len(row))],
            [i for i, row in enumerate(rows) for _ in row],
        )
    )
    logits = relay_forward(
        session.chunks,
        lambda chunk: chunk(tokens, positions, segment_ids=segments),
        shape=(tokens.shape[1], 1, session.config.hidden_size),
        dtype=session.settings.params_dtype,
        ranks=session.ranks,
    )
    if logits is None:
        return {}
    whole = gather_vocabulary(logits[:, 0], session.ranks.tensor_group)  # [s, padded v]
    log_probs = whole[:, : vocab_size_of(session.config)].float().log_softmax(dim=-1)
    best = log_probs.argmax(dim=-1)
    found: dict[tuple[int, int], LogLikelihood] = {}
    end = 0
    for stem, row in zip(stems, rows, strict=True):
        end += len(row)
        for number, continuation in enumerate(items[stem.item].continuations):
            if continuation[:-1] != stem.tokens:
                continue
            ids = torch.tensor(continuation, device=device)
            places = slice(end - len(continuation), end)
            picked = log_probs[places].gather(1, ids.unsqueeze(1)).double().sum()
            is_greedy = bool((best[places] == ids).all())
            found[stem.item, number] = LogLikelihood(picked.item(), is_greedy)
    return found


def _check(session: Session, index: int, item: Continuations, prefix: tuple[int, ...]) -> None:
    positions = session.config.max_position_embeddings
    vocab_size = vocab_size_of(session.config)
    before = prefix + item.context
    name = f"item {index} (the first is 0)"
    if not before:
        raise DataError(
            f"{name} has no token before its continuations, so the first of their tokens has no "
            "probability. Prepend the beginning of sequence."
        )
    if not item.continuations or not all(item.continuations):
        raise DataError(
            f"{name} has no continuation, or one without tokens: each needs at least one. Remove "
            "it, or check what it was encoded from."
        )
    longest = len(before) + max(map(len, item.continuations))
    if longest > positions:
        raise DataError(
            f"{name} has {longest} tokens: {len(prefix)} of the prefix, {len(item.context)} of its "
            f"context, the rest of its longest continuation. The model has {positions} positions. "
            "Shorten one of them, for example by fewer examples in the prefix."
        )
    ids = [*before, *(token for continuation in item.continuations for token in continuation)]
    low, high = min(ids), max(ids)
    if low < 0 or high >= vocab_size:
        raise DataError(
            f"{name} holds ids from {low} to {high}, but the vocabulary has {vocab_size}. Was it "
            "encoded with another tokenizer?"
        )
