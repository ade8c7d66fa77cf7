"""Decoding at every layout from one checkpoint: the tokens of transformers, the same samples."""

import math

import pytest
import torch
import torch.distributed as dist

from megatron_chimed.engine import ParallelConfig
from megatron_chimed.errors import ChimedError
from megatron_chimed.generation import (
    SamplingConfig,
    generate,
    make_requests,
    open_session,
    stream_completions,
)
from tests.tiers import full_but
from tests.unit.generation import toy

TP = "tensor_parallel_size"
PP = "pipeline_parallel_size"
VPP = "virtual_pipeline_parallel_size"
LAYOUTS = {
    "1 rank": (1, {}),
    "TP2": (2, {TP: 2}),
    "PP2": (2, {PP: 2}),
    "PP2 x VPP2": (2, {PP: 2, VPP: 2}),
    "DP2": (2, {}),
    "PP3 uneven": (3, {PP: 3}),
    "TP2 x PP2": (4, {TP: 2, PP: 2}),
}
GREEDY = SamplingConfig(max_new_tokens=64)
SAMPLED = SamplingConfig(
    max_new_tokens=24, temperature=0.9, top_k=40, top_p=0.95, repetition_penalty=1.2, seed=5
)
STOPPED = SamplingConfig(max_new_tokens=16, stop_strings=("a", "e"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return toy.save_reference(tmp_path_factory.mktemp("reference"))


def decode_at_layout(rank, world_size, store_path, checkpoint, parallel):
    store = dist.FileStore(store_path, world_size)
    config = ParallelConfig(timeout_seconds=60, **parallel)
    world = (rank, world_size, rank)
    with open_session(checkpoint, config, world=world, store=store) as session:
        # More rows than a batch, so that replicas and batches end at different steps.
        return [
            generate(session, toy.PROMPTS, sampling, num_candidates=2, max_batch=3)
            for sampling in (GREEDY, SAMPLED, STOPPED)
        ]


@pytest.fixture(scope="module")
def one_rank(gloo_pool, checkpoint):
    return gloo_pool.run(decode_at_layout, 1, checkpoint, {}, init=False)[0]


@pytest.mark.parametrize(
    "layout", full_but(["1 rank", "PP2 x VPP2", "DP2", "PP3 uneven", "TP2 x PP2"], LAYOUTS)
)
def test_same_tokens_at_every_layout(gloo_pool, checkpoint, one_rank, layout):
    world_size, parallel = LAYOUTS[layout]
    results = gloo_pool.run(decode_at_layout, world_size, checkpoint, parallel, init=False)
    for greedy, sampled, stopped in results:
        for completion in greedy:
            prompt = toy.PROMPTS[completion.prompt_id]
            assert completion.token_ids == toy.reference_completion(prompt, 64)
        assert [greedy, sampled, stopped] == one_rank
    assert {c.finish_reason for c in one_rank[2]} == {"stop", "length"}


def stop_on_the_way(rank, world_size, store_path, checkpoint, parallel):
    """Only the first rank knows when; then all go on together with another prompt."""
    store = dist.FileStore(store_path, world_size)
    config = ParallelConfig(timeout_seconds=60, **parallel)
    world = (rank, world_size, rank)
    with open_session(checkpoint, config, world=world, store=store) as session:
        agreement, steps = session.ranks.agreement, iter(range(99))

        def should_stop():
            return agreement.broadcast_flag(rank == 0 and next(steps) == 7)

        requests = make_requests(toy.PROMPTS[1:])
        running = stream_completions(
            session, requests, GREEDY, max_batch=2, should_stop=should_stop
        )
        return list(running), generate(session, toy.PROMPTS[:1], GREEDY)


@pytest.mark.parametrize("layout", ["TP2", "PP2"])
def test_every_rank_stops_at_the_same_token(gloo_pool, checkpoint, one_rank, layout):
    world_size, parallel = LAYOUTS[layout]
    whole = {completion.prompt_id: completion.token_ids for completion in one_rank[0]}
    results = gloo_pool.run(stop_on_the_way, world_size, checkpoint, parallel, init=False)
    for stopped, after in results:
        assert [c.prompt_id for c in stopped] == [0, 1], "the third was waiting"
        for completion in stopped:
            assert completion.finish_reason == "interrupted"
            assert completion.token_ids == whole[completion.prompt_id + 1][:7]
        assert after[0].token_ids == whole[0]


def fail_everywhere(rank, world_size, store_path, checkpoint, parallel):
    """Messages of a bad prompt, and of a head that is broken on the rank that has its row 3."""
    store = dist.FileStore(store_path, world_size)
    config = ParallelConfig(timeout_seconds=60, **parallel)
    messages = []
    with open_session(checkpoint, config, world=(rank, world_size, rank), store=store) as session:
        messages.append(message_of(session, [[1], []]))
        head = session.chunks[-1].lm_head
        if head is not None and session.ranks.tensor_rank == 0:
            with torch.no_grad():
                head.weight[3] = math.nan
        messages.append(message_of(session, [[1, 2], [3]]))
    return messages


def message_of(session, prompts):
    try:
        generate(session, prompts, GREEDY)
    except ChimedError as error:
        return f"{type(error).__name__}: {error}"
    return None


def test_all_ranks_fail_alike(gloo_pool, checkpoint):
    parallel = {TP: 2, PP: 2}
    results = gloo_pool.run(fail_everywhere, 4, checkpoint, parallel, init=False)
    for bad_prompt, bad_head in results:
        assert bad_prompt.startswith("DataError: prompt 1 (the first is 0) has no tokens")
        assert bad_head.startswith("NumericError: the logits after token 1 of prompt 0 are not")
    assert len({tuple(messages) for messages in results}) == 1


def open_with_error(rank, world_size, store_path, checkpoint, parallel):
    store = dist.FileStore(store_path, world_size)
    config = ParallelConfig(timeout_seconds=60, **parallel)
    try:
        with open_session(checkpoint, config, world=(rank, world_size, rank), store=store):
            return None
    except ChimedError as error:
        return f"{type(error).__name__}: {error}"


def test_layout_that_does_not_fit_is_refused(gloo_pool, checkpoint):
    (message,) = gloo_pool.run(open_with_error, 1, checkpoint, {TP: 2}, init=False)
    assert message.startswith("ConfigError: 1 ranks cannot be split into groups")
