"""Log-likelihoods of continuations: those of transformers, however they are batched and shared."""

import math
from unittest import mock

import pytest
import torch

from megatron_chimed.errors import ConfigError, DataError, NumericError
from megatron_chimed.generation import Continuations, log_likelihoods
from megatron_chimed.generation.paged_cache import PagedCache
from tests.unit.generation import toy

PREFIX = [3 + 5 * i for i in range(33)]
# Letters; letters after a token that all share; texts of any length, one the beginning of another,
# one twice; a single continuation; nothing between the prefix and the continuations.
ITEMS = [
    Continuations(context=(9, 77, 5), continuations=((11,), (12,), (13,), (339,))),
    Continuations(context=(8,), continuations=((40, 11), (40, 12), (40, 13))),
    Continuations(context=(7, 7), continuations=((1, 2, 3), (1,), (1, 2), (4, 5, 6, 7), (1, 2, 3))),
    Continuations(context=(300, 12, 9), continuations=(tuple(range(20, 50)),)),
    Continuations(context=(), continuations=((5, 6), (6,))),
]


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    checkpoint = toy.save_reference(tmp_path_factory.mktemp("reference"))
    with toy.toy_session(checkpoint) as session:
        yield session


def expected(items=ITEMS, prefix=PREFIX):
    """Each continuation alone, by transformers: its log-probability, and whether it is greedy."""
    found = []
    for item in items:
        rows = []
        for continuation in item.continuations:
            ids = torch.tensor([[*prefix, *item.context, *continuation]])
            with torch.no_grad():
                logits = toy.reference_model()(ids).logits[0, -len(continuation) - 1 : -1]
            told = torch.tensor(continuation)
            log_probs = logits.double().log_softmax(-1).gather(-1, told[:, None])
            is_greedy = bool((logits.argmax(-1) == told).all())
            rows.append((log_probs.sum().item(), is_greedy))
        found.append(rows)
    return found


def assert_same(found, wanted):
    assert [len(row) for row in found] == [len(row) for row in wanted]
    for given, true in zip(sum(found, []), sum(wanted, []), strict=True):
        assert given[0] == pytest.approx(true[0], abs=1e-4) and given[1] == true[1]


@pytest.mark.parametrize("batch_tokens", [1, 64, 4096])
def test_they_are_those_of_transformers_in_any_batch(session, batch_tokens):
    found = log_likelihoods(session, ITEMS, prefix=PREFIX, batch_tokens=batch_tokens)
    assert_same(found, expected())


def test_a_prefix_is_the_beginning_of_each_context(session):
    whole = [
        Continuations(context=(*PREFIX, *item.context), continuations=item.continuations)
        for item in ITEMS
    ]
    assert_same(log_likelihoods(session, whole), expected())
    assert log_likelihoods(session, [], prefix=PREFIX) == []


def test_what_is_shared_is_computed_once(session):
    """The prefix but for its last token, a trunk for each item, and what follows it in branches."""
    passes = []
    plain = PagedCache.prefill

    def count(self, runs, wanted=None):
        passes.append([len(run.tokens) for run in runs])
        return plain(self, runs, wanted)

    with mock.patch.object(PagedCache, "prefill", count):
        log_likelihoods(session, ITEMS, prefix=PREFIX)
    prefix, trunks, branches = passes
    assert prefix == [len(PREFIX) - 1]
    # A token of the prefix, the context, and what all continuations begin with.
    assert sorted(trunks) == sorted([1 + 3, 1 + 1 + 1, 1 + 2, 1 + 3 + 29, 1 + 0])
    assert sorted(branches) == sorted([2, 1, 3, 1])  # (1, 2), (1,), (4, 5, 6) and (5,)


def test_what_greedy_decoding_writes_is_greedy(session):
    written = toy.reference_completion(PREFIX, 8)
    other = (*written[:-1], (written[-1] + 1) % 340)
    item = Continuations(context=(), continuations=(written, written[:3], other))
    [found] = log_likelihoods(session, [item], prefix=PREFIX)
    assert [each.is_greedy for each in found] == [True, True, False]


@pytest.mark.parametrize(
    ("prefix", "context", "continuations", "message"),
    [
        ([], (), ((1,),), r"item 1 \(the first is 0\) has no token before its continuations"),
        ([4], (), (), "item 1 .* has no continuation, or one without tokens"),
        ([4], (5,), ((1,), ()), "item 1 .* has no continuation, or one without tokens"),
        ([4] * 100, (5,), ((1,) * 28,), "has 129 tokens: 100 of the prefix, 1 of its context"),
        ([4], (5,), ((340,),), "holds ids from 4 to 340, but the vocabulary has 340"),
        ([4], (-1,), ((3,),), "holds ids from -1 to 4"),
    ],
)
def test_bad_items_are_named(session, prefix, context, continuations, message):
    good = Continuations(context=(2,), continuations=((3,),))
    bad = Continuations(context=context, continuations=continuations)
    with pytest.raises(DataError, match=message):
        log_likelihoods(session, [good, bad], prefix=prefix)


def test_a_batch_without_tokens_is_refused(session):
    with pytest.raises(ConfigError, match="batch_tokens is 0"):
        log_likelihoods(session, ITEMS, batch_tokens=0)


def test_values_that_are_not_finite_are_refused(session):
    head = session.chunks[-1].lm_head.weight
    kept = head[5].detach().clone()
    with torch.no_grad():
        head[5] = math.nan
        try:
            with pytest.raises(NumericError, match="log-probability of a continuation is not"):
                log_likelihoods(session, ITEMS[:1])
        finally:
            head[5] = kept
