"""What must hold of ranked answers beyond what opening them checks."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from megatron_chimed.data.datasets.prefix import Prefix
from megatron_chimed.data.inspection.contents import Fault
from megatron_chimed.data.inspection.finding import Finding, judge
from megatron_chimed.data.inspection.scan import Block, Part, scan


def check_rankings(prefix: Prefix, parts: Sequence[Part]) -> Iterator[Finding]:
    """Verifies groups, ranks and prompts of a preference prefix, all whose files fit."""
    sizes = np.diff(prefix.indexed.document_indices)
    yield _check_ranks(prefix, sizes)
    prompts, masks, twins = Fault(), Fault(), Fault()
    for block in scan(prefix, parts):
        documents = slice(block.first, block.first + len(block.documents) - 1)
        lengths = prefix.rankings.prompt_lengths[documents].astype(np.int64)
        differs, is_learned = _compare_prompts(block, lengths)
        prompts.add(differs, block, of="document")
        masks.add(is_learned, block, of="document")
        ranks = prefix.rankings.ranks[block.first_sequence :][: len(block.lengths)]
        twins.add(_has_twins(block, ranks), block, of="document")
    lengths = prefix.rankings.prompt_lengths
    longest = int(lengths.max(initial=0))
    detail = f"{int(lengths.min(initial=longest))} to {longest} tokens, shared by all candidates"
    wrong = f"of {prompts.count} groups the candidates begin differently: {prompts.first}"
    yield judge("prompts", not prompts.count, wrong if prompts.count else detail)
    wrong = f"supervised in {masks.count} groups: {masks.first}"
    yield judge("prompt tokens", not masks.count, wrong if masks.count else "never supervised")
    wrong = f"equal but ranked differently in {twins.count} groups: {twins.first}"
    yield judge(
        "candidates", not twins.count, wrong if twins.count else "no equal ones ranked apart"
    )


def _check_ranks(prefix: Prefix, sizes: np.ndarray) -> Finding:
    """Every group needs a best candidate and a worse one."""
    ranks, first = prefix.rankings.ranks, prefix.indexed.document_indices[:-1]
    is_lonely = sizes < 2
    if is_lonely.any():
        detail = f"{int(is_lonely.sum())} groups have less than two candidates: "
        return judge("ranks", False, f"{detail}document {int(np.argmax(is_lonely))}")
    smallest = np.minimum.reduceat(ranks, first) if len(first) else ranks
    largest = np.maximum.reduceat(ranks, first) if len(first) else ranks
    for is_wrong, what in (
        (smallest != 0, "have no candidate of rank 0"),
        (smallest == largest, "rank all candidates the same, so nothing is learned"),
    ):
        if is_wrong.any():
            detail = f"{int(is_wrong.sum())} groups {what}: document {int(np.argmax(is_wrong))}"
            return judge("ranks", False, detail)
    pairs = int((sizes == 2).sum())
    detail = f"{len(sizes)} groups, {pairs} of them pairs, {count_ties(prefix)} with a tie"
    return judge("ranks", True, detail)


def count_ties(prefix: Prefix) -> int:
    """Groups in which two candidates have the same rank."""
    sizes = np.diff(prefix.indexed.document_indices)
    owners = np.repeat(np.arange(len(sizes)), sizes)
    order = np.lexsort((prefix.rankings.ranks, owners))
    ranks, owners = prefix.rankings.ranks[order], owners[order]
    is_tied = (ranks[1:] == ranks[:-1]) & (owners[1:] == owners[:-1])
    return len(np.unique(owners[1:][is_tied]))


def _compare_prompts(block: Block, prompt_lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per group: whether a candidate's prompt is not the first one's; whether one is supervised."""
    sizes = np.diff(block.documents)
    owners = np.repeat(np.arange(len(sizes)), sizes)  # [candidates]
    starts = block.bounds[:-1]
    lengths = prompt_lengths[owners]
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    here = np.repeat(starts, lengths) + within  # [all prompt tokens], places in the block
    there = np.repeat(starts[block.documents[:-1]][owners], lengths) + within
    groups = np.repeat(owners, lengths)
    differs = np.zeros(len(sizes), bool)
    differs[groups[block.tokens[here] != block.tokens[there]]] = True
    is_learned = np.zeros(len(sizes), bool)
    is_learned[groups[block.targets[here] != 0]] = True
    return differs, is_learned


def _has_twins(block: Block, ranks: np.ndarray) -> np.ndarray:
    """Per group: whether two candidates have the same tokens but not the same rank."""
    bounds = block.bounds
    has_twins = np.zeros(len(block.documents) - 1, bool)
    for group, (first, last) in enumerate(itertools.pairwise(block.documents.tolist())):
        if len(set(block.lengths[first:last].tolist())) == last - first:
            continue
        seen: dict[bytes, int] = {}
        for candidate in range(first, last):
            ids = block.tokens[bounds[candidate] : bounds[candidate + 1]].tobytes()
            has_twins[group] |= seen.setdefault(ids, ranks[candidate]) != ranks[candidate]
    return has_twins
