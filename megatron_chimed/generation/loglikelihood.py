"""How likely a model finds each of several continuations of a text, and whether it would write it.

Multiple choice asks for this: many questions begin with the same instructions and examples (the
prefix), and the answers to one question often differ in their last token only. The prefix is
computed and held once, a context once, and what only some continuations share once for each.
"""

import itertools
import math
import os.path
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from megatron_chimed.data.datasets.native import pack
from megatron_chimed.errors import ConfigError, DataError, NumericError
from megatron_chimed.generation.cache_memory import PAGE_TOKENS, CachePlan
from megatron_chimed.generation.paged_cache import PagedCache, Run
from megatron_chimed.generation.session import Session, vocab_size_of
from megatron_chimed.model import gather_vocabulary

WHOLE_ROWS = 128
"""Rows of logits over the whole vocabulary that exist at a time, in fp32, beside the ranks' own."""


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
        batch_tokens: Tokens in a forward pass beside the prefix, unless one item has more; changes
            speed and memory only. Logits have a row for each token that predicts one of a
            continuation.

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
    trees = [_Tree.of(index, item, tuple(prefix)) for index, item in enumerate(items)]
    found = _measure_share(session, trees, tuple(prefix[:-1]), batch_tokens) if trees else []
    sent = found if session.ranks.tensor_rank == 0 else []
    every = session.ranks.agreement.on_all_ranks(lambda: sent)
    merged = {(i, j): LogLikelihood(*value) for part in every for i, j, *value in part}
    if not all(math.isfinite(value.log_prob) for value in merged.values()):
        raise NumericError(
            "the log-probability of a continuation is not finite: the weights are damaged or "
            "overflow in this precision. Try precision fp32, or an older checkpoint."
        )
    return [[merged[i, j] for j in range(len(item.continuations))] for i, item in enumerate(items)]


class _Tree(NamedTuple):
    """The tokens that an item needs computed: a trunk, and branches that begin where it ends.

    A continuation's last token is never computed, so letters that differ in it alone need the
    trunk and nothing else.
    """

    item: int
    continuations: tuple[tuple[int, ...], ...]
    trunk: tuple[int, ...]
    """The last token before the continuations' own, and those before it that are not cached; then
    what all continuations have in common, without their last tokens."""
    num_common: int
    """Number of tokens of the trunk that belong to the continuations."""
    branches: tuple[tuple[int, ...], ...]
    """What else comes before a last token; none of them is empty."""

    @classmethod
    def of(cls, index: int, item: Continuations, prefix: tuple[int, ...]) -> "_Tree":
        stems = [continuation[:-1] for continuation in item.continuations]
        common = tuple(os.path.commonprefix(stems))
        rests = dict.fromkeys(stem[len(common) :] for stem in stems)
        return cls(
            item=index,
            continuations=item.continuations,
            # The prefix's last token is computed again: it may be what predicts the first token.
            trunk=(*prefix[-1:], *item.context, *common),
            num_common=len(common),
            branches=tuple(rest for rest in rests if rest),
        )

    @property
    def num_tokens(self) -> int:
        return len(self.trunk) + sum(map(len, self.branches))


def _measure_share(
    session: Session, trees: Sequence[_Tree], held: tuple[int, ...], batch_tokens: int
) -> list[tuple]:
    """This replica's results (item, continuation, log-probability, is greedy); [] but at the end.

    Args:
        session: The model.
        trees: Of all items.
        held: Tokens before every trunk.
        batch_tokens: As of `log_likelihoods`.
    """
    lengths = [tree.num_tokens for tree in trees]
    members, starts = pack(np.array(lengths, np.int32), max(batch_tokens, *lengths))
    batches = [
        [trees[member] for member in members[start:stop].tolist()]
        for start, stop in zip(starts, starts[1:], strict=False)
    ]
    cache = PagedCache(session, _plan(batches, held))
    found: list[tuple] = []
    ranks = session.ranks
    with torch.inference_mode():
        if held:
            cache.extend([(0, 0, len(held))])
            cache.prefill([Run(0, 0, held)])
        for batch in batches[ranks.data_rank :: ranks.layout.data_parallel_size]:
            found += _measure(session, cache, batch, len(held))
    return found


def _plan(batches: Sequence[Sequence[_Tree]], held: tuple[int, ...]) -> CachePlan:
    """The cache of the largest batch; a row of its own for the prefix, each trunk and branch."""

    def pages(length: int) -> int:
        return length // PAGE_TOKENS + 2  # it begins and ends within a page

    def total(batch: Sequence[_Tree]) -> int:
        runs = [len(run) for tree in batch for run in (tree.trunk, *tree.branches)]
        return sum(map(pages, runs))

    return CachePlan(
        num_rows=1 + max(sum(1 + len(tree.branches) for tree in batch) for batch in batches),
        longest=len(held) + max(tree.num_tokens for batch in batches for tree in batch),
        page_tokens=PAGE_TOKENS,
        num_pages=pages(len(held)) + max(map(total, batches)),
    )


def _measure(
    session: Session, cache: PagedCache, batch: Sequence[_Tree], num_held: int
) -> list[tuple]:
    """Runs trunks, then branches; results on the last pipeline stage, [] elsewhere."""
    trunks, branches = [], []
    rows = itertools.count(1)
    for tree in batch:
        trunk = next(rows)
        cache.tables.fork(0, trunk, num_held)
        trunks.append(Run(trunk, num_held, tree.trunk))
        branches += [(trunk, next(rows), tree, branch) for branch in tree.branches]
    wanted, end = [], 0
    for tree in batch:
        end += len(tree.trunk)
        wanted += range(end - tree.num_common - 1, end)
    _make_room(cache, trunks)
    logits = [cache.prefill(trunks, wanted)]
    runs = []
    for trunk, row, tree, branch in branches:
        start = num_held + len(tree.trunk)
        cache.tables.fork(trunk, row, start)
        runs.append(Run(row, start, branch))
    if runs:
        _make_room(cache, runs)
        logits.append(cache.prefill(runs, range(sum(len(run.tokens) for run in runs))))
    for row in range(1, next(rows)):
        cache.tables.release(row)
    present = [part for part in logits if part is not None]
    return _read_off(session, present, batch) if present else []


def _make_room(cache: PagedCache, runs: Sequence[Run]) -> None:
    cache.extend([(run.row, run.start, run.start + len(run.tokens)) for run in runs])


def _read_off(
    session: Session, logits: Sequence[torch.Tensor], batch: Sequence[_Tree]
) -> list[tuple]:
    """Sums what the passes found for each continuation.

    Args:
        session: The model.
        logits: [w, v/t] of the tokens that predict: of trunks, then of branches.
        batch: In the order of the passes.
    """
    keys: list[tuple[int, int]] = []
    places: list[tuple[int, int, int]] = []  # row of logits, token, number of the key
    trunk_row, branch_row = 0, sum(tree.num_common + 1 for tree in batch)
    for tree in batch:
        begins = {}
        for branch in tree.branches:
            begins[branch] = branch_row
            branch_row += len(branch)
        for number, tokens in enumerate(tree.continuations):
            rest = tokens[tree.num_common : -1]
            in_trunk = range(trunk_row, trunk_row + tree.num_common + 1)
            in_branch = range(begins[rest], begins[rest] + len(rest)) if rest else ()
            predicting = [*in_trunk, *in_branch]
            places += zip(predicting, tokens, [len(keys)] * len(tokens), strict=True)
            keys.append((tree.item, number))
        trunk_row += tree.num_common + 1
    rows, tokens, owners = torch.tensor(places, device=logits[0].device).unbind(1)
    log_probs, is_best = _log_probs(session, logits, rows, tokens)
    sums = torch.zeros(len(keys), dtype=torch.float64, device=rows.device)
    sums.index_add_(0, owners, log_probs.double())
    misses = torch.zeros_like(sums).index_add_(0, owners, (~is_best).double())
    values = zip(keys, sums.tolist(), misses.tolist(), strict=True)
    return [(*key, log_prob, not missed) for key, log_prob, missed in values]


def _log_probs(
    session: Session, logits: Sequence[torch.Tensor], rows: torch.Tensor, tokens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each token at its row [w, v/t], and whether it is the most likely one."""
    log_probs = torch.empty(len(rows), device=rows.device)
    is_best = torch.empty(len(rows), dtype=torch.bool, device=rows.device)
    begin = 0
    for part in [piece for whole in logits for piece in whole.split(WHOLE_ROWS)]:
        whole = gather_vocabulary(part, session.ranks.tensor_group)  # [rows, padded v]
        whole = whole[:, : vocab_size_of(session.config)].float()
        mine = ((rows >= begin) & (rows < begin + len(part))).nonzero()[:, 0]
        at, token = rows[mine] - begin, tokens[mine]
        log_probs[mine] = whole.log_softmax(dim=-1)[at, token]
        is_best[mine] = whole.argmax(dim=-1)[at] == token
        begin += len(part)
    return log_probs, is_best


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
