"""Verifies ranked answers beyond what opening them checks."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from megatron_chimed.data.datasets.preference import Rankings
from megatron_chimed.data.datasets.prefix import Prefix
from megatron_chimed.data.inspection.findings import Finding, checked
from megatron_chimed.data.inspection.token_blocks import DocumentRange, TokenBlock, token_blocks
from megatron_chimed.data.inspection.token_counts import FaultCount


def check_rankings(prefix: Prefix, ranges: Sequence[DocumentRange]) -> Iterator[Finding]:
    """Verifies groups, ranks and prompts of a preference prefix that could be opened."""
    rankings = _rankings_of(prefix)
    yield _check_ranks(prefix, rankings)
    prompts, masks, twins = FaultCount(), FaultCount(), FaultCount()
    for block in token_blocks(prefix, ranges):
        documents = slice(block.first, block.first + len(block.documents) - 1)
        lengths = rankings.prompt_lengths[documents].astype(np.int64)
        differs, is_learned = _compare_prompts(block, lengths)
        prompts.add(differs, block, of="document")
        masks.add(is_learned, block, of="document")
        ranks = rankings.ranks[block.first_sequence :][: len(block.lengths)]
        twins.add(_has_twins(block, ranks), block, of="document")
    lengths = rankings.prompt_lengths
    longest = int(lengths.max(initial=0))
    detail = f"{int(lengths.min(initial=longest))} to {longest} tokens, shared by all candidates"
    wrong = (
        f"in {prompts.count} groups the candidates start with different prompts: {prompts.first}"
    )
    yield checked("prompts", not prompts.count, wrong if prompts.count else detail)
    wrong = f"supervised in {masks.count} groups: {masks.first}"
    yield checked("prompt tokens", not masks.count, wrong if masks.count else "never supervised")
    wrong = f"equal candidates with different ranks in {twins.count} groups: {twins.first}"
    yield checked(
        "candidates",
        not twins.count,
        wrong if twins.count else "no equal ones with different ranks",
    )


def _rankings_of(prefix: Prefix) -> Rankings:
    assert prefix.rankings is not None, f"{prefix.stage} data have no rankings"
    return prefix.rankings


def _check_ranks(prefix: Prefix, rankings: Rankings) -> Finding:
    """Every group needs a best candidate and a worse one, or is one judged answer."""
    ranks, is_unpaired = rankings.ranks, rankings.is_unpaired
    first = prefix.indexed.document_indices[:-1]
    sizes = np.diff(prefix.indexed.document_indices)
    is_lonely = (sizes < 2) & ~is_unpaired
    if is_lonely.any():
        detail = f"{int(is_lonely.sum())} groups have fewer than two candidates: "
        return checked("ranks", False, f"{detail}document {int(np.argmax(is_lonely))}")
    smallest = np.minimum.reduceat(ranks, first) if len(first) else ranks
    largest = np.maximum.reduceat(ranks, first) if len(first) else ranks
    for fault, what in (
        (smallest != 0, "have no candidate of rank 0"),
        (smallest == largest, "rank all candidates equally, so nothing is learned"),
    ):
        is_wrong = fault & ~is_unpaired
        if is_wrong.any():
            detail = f"{int(is_wrong.sum())} groups {what}: document {int(np.argmax(is_wrong))}"
            return checked("ranks", False, detail)
    pairs = int((sizes == 2).sum())
    detail = f"{len(sizes)} groups, {pairs} of them pairs, {count_ties(prefix)} with a tie"
    if is_unpaired.any():
        good = int((ranks[first[is_unpaired]] == 0).sum())
        detail += f", {int(is_unpaired.sum())} judged answers ({good} good)"
    return checked("ranks", True, detail)


def count_ties(prefix: Prefix) -> int:
    """Groups in which two candidates have the same rank."""
    sizes = np.diff(prefix.indexed.document_indices)
    owners = np.repeat(np.arange(len(sizes)), sizes)
    ranks = _rankings_of(prefix).ranks
    order = np.lexsort((ranks, owners))
    ranks, owners = ranks[order], owners[order]
    is_tied = (ranks[1:] == ranks[:-1]) & (owners[1:] == owners[:-1])
    return len(np.unique(owners[1:][is_tied]))


def _compare_prompts(
    block: TokenBlock, prompt_lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Per group: whether the prompts differ, and whether a prompt token is supervised."""
    assert block.targets is not None, "preference data have targets"
    sizes = np.diff(block.documents)
    owners = np.repeat(np.arange(len(sizes)), sizes)  # [candidates]
    starts = block.bounds[:-1]
    lengths = prompt_lengths[owners]
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    here = np.repeat(starts, lengths) + within  # [all prompt tokens], indices in the block
    there = np.repeat(starts[block.documents[:-1]][owners], lengths) + within
    groups = np.repeat(owners, lengths)
    differs = np.zeros(len(sizes), bool)
    differs[groups[block.tokens[here] != block.tokens[there]]] = True
    is_learned = np.zeros(len(sizes), bool)
    is_learned[groups[block.targets[here] != 0]] = True
    return differs, is_learned


def _has_twins(block: TokenBlock, ranks: np.ndarray) -> np.ndarray:
    """Per group: whether two candidates have the same tokens but different ranks."""
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
