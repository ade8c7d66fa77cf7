"""What pages save, and that tokens do not depend on them."""

from unittest import mock

import pytest

from megatron_chimed.errors import ConfigError
from megatron_chimed.generation import (
    Request,
    SamplingConfig,
    cache_memory,
    generate,
    make_requests,
    paged_cache,
    stream_completions,
)
from megatron_chimed.generation.cache_memory import plan_cache
from tests.unit.generation import toy

GREEDY = SamplingConfig(max_new_tokens=12)
SAMPLED = SamplingConfig(max_new_tokens=12, temperature=0.9, top_p=0.95, seed=5)
PREFIX = tuple(3 + 5 * i for i in range(37))  # two pages and a part of a third


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    checkpoint = toy.save_reference(tmp_path_factory.mktemp("reference"))
    with toy.toy_session(checkpoint) as session:
        yield session


@pytest.fixture
def caches(monkeypatch):
    """The caches that were made."""
    made = []

    class Kept(paged_cache.PagedCache):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr("megatron_chimed.generation.decoder.PagedCache", Kept)
    monkeypatch.setattr("megatron_chimed.generation.loglikelihood.PagedCache", Kept)
    return made


def run(session, requests, sampling=GREEDY, max_batch=64):
    found = stream_completions(session, requests, sampling, max_batch=max_batch)
    return {(c.prompt_id, c.candidate): c.token_ids for c in found}


def test_one_long_prompt_among_short_ones_costs_its_own_pages(session, caches):
    """64 rows of 112 tokens would be 448 pages of 16."""
    prompts = [[7 + i for i in range(100)], *([i] * 4 for i in range(1, 64))]
    found = run(session, make_requests(prompts))
    [cache] = caches
    held = 63 * 1 + 7  # of 15 tokens and 111: the last token drawn is not kept
    assert held <= cache.num_pages <= held * 17 // 16
    assert cache.tables.num_held == 0
    for number in (0, 1, 63):
        assert found[number, 0] == toy.reference_completion(prompts[number], 12)


def test_memory_follows_the_tokens_that_are_there(session, caches):
    """Limits of 100 tokens that no completion reaches, on the way in pages."""
    stop = toy.reference_completion([5, 6], 8)[7]
    prompts = [[5, 6]] * 4
    config = SamplingConfig(max_new_tokens=100, stop_token_ids=(stop,))
    with mock.patch.object(cache_memory, "WORTHWHILE", 99):
        run(session, [Request(prompt=tuple(p), prompt_id=i) for i, p in enumerate(prompts)], config)
    assert caches[0].num_pages == 4


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("max_batch", [2, 5])
def test_pages_change_no_token(session, monkeypatch, sampling, max_batch):
    whole = generate(session, toy.PROMPTS, sampling, num_candidates=3, with_log_probs=True)
    for size in (1, 7, 16):
        monkeypatch.setattr(cache_memory, "PAGE_TOKENS", size)
        monkeypatch.setattr(cache_memory, "WORTHWHILE", 99)
        found = generate(
            session,
            toy.PROMPTS,
            sampling,
            num_candidates=3,
            max_batch=max_batch,
            with_log_probs=True,
        )
        assert found == whole, "equal to the last bit"


def test_candidates_hold_their_prompt_once(session, caches):
    prompt = [7 + i for i in range(97)]
    found = run(session, make_requests([prompt], num_candidates=8), SAMPLED)
    assert len(set(found.values())) > 1
    # 6 whole pages of the prompt, then one for each candidate (positions 96 to 107).
    assert caches[0].num_pages <= (6 + 8) * 17 // 16 + 1


def requests_with_prefix(shares):
    return [
        Request(prompt=(*PREFIX, 40 + i, 9), prompt_id=i, prefix_length=shares * len(PREFIX))
        for i in range(6)
    ]


@pytest.mark.parametrize("max_batch", [1, 4, 6])
def test_a_prefix_is_computed_and_held_once(session, caches, max_batch):
    computed = []
    plain = paged_cache.PagedCache.prefill

    def count(self, runs, wanted=None):
        computed.extend(len(run.tokens) for run in runs)
        return plain(self, runs, wanted)

    with (
        mock.patch.object(paged_cache.PagedCache, "prefill", count),
        mock.patch.object(cache_memory, "WORTHWHILE", 99),
    ):
        found = run(session, requests_with_prefix(True), max_batch=max_batch)
    assert sorted(computed) == [1] * 6 + [len(PREFIX)]
    assert found == run(session, requests_with_prefix(False), max_batch=max_batch)
    for number, request in enumerate(requests_with_prefix(False)):
        assert found[number, 0] == toy.reference_completion([*request.prompt], 12)
    # Two whole pages and the third's beginning, and for each row positions 32 to 49.
    assert caches[0].num_pages <= (3 + 2 * max_batch) * 17 // 16 + 1


def test_several_prefixes_take_turns(session):
    requests = [
        Request(prompt=(first,) * 20 + (5, 6), prompt_id=i, prefix_length=20)
        for i, first in enumerate((1, 1, 2, 2, 1))
    ]
    for worth in (0, 99):
        with mock.patch.object(cache_memory, "WORTHWHILE", worth):
            found = run(session, requests, max_batch=3)
        for request in requests:
            wanted = toy.reference_completion([*request.prompt], 12)
            assert found[request.prompt_id, 0] == wanted


def test_a_prefix_must_end_before_the_last_token(session):
    with pytest.raises(ConfigError, match="has 2 tokens and prefix_length 2: set 0 to 1"):
        run(session, [Request(prompt=(1, 2), prompt_id=0, prefix_length=2)])


def test_rows_of_similar_length_are_in_one_piece_on_cpu_alone():
    requests = make_requests([[1] * 60, [2] * 64, [3] * 64])
    assert plan_cache(requests, 128, 2, on_cpu=True).page_tokens == 192
    assert plan_cache(requests, 128, 2, on_cpu=False).page_tokens == 16
    ragged = make_requests([[1] * 400, *[[2] * 16] * 63])
    plan = plan_cache(ragged, 60, 64, on_cpu=True)
    assert plan.page_tokens == 16
    # 29 pages, then 5 each; without pages 64 rows of 460 tokens.
    assert plan.num_pages * 16 < 0.19 * 64 * 460
