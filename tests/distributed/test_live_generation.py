"""Generating with the weights of a running job: at every layout, and as if it had not been."""

import pytest

from megatron_chimed import engine
from megatron_chimed.generation import SamplingConfig, generate, live_session
from tests.distributed import jobs

PROMPTS = [[3], [5, 200, 12, 9, 77], [2 + 5 * i for i in range(30)]]
DRAWN = SamplingConfig(max_new_tokens=12, temperature=1.0, seed=1)
GREEDY = SamplingConfig(max_new_tokens=12)
LAYOUTS = {
    "1 rank": (1, {}),
    "TP2 with sequence parallelism": (2, jobs.TP2_SP),
    "PP2 x VPP2": (2, jobs.PP2_VPP2),
    "DP2, gather of weights overlapped": (
        2,
        {**jobs.DP2_DISTRIBUTED, "overlap_grad_reduce": True, "overlap_param_gather": True},
    ),
}


def train(rank, world_size, store_path, parallel, model, generates):
    """Losses of three steps, and what was generated after each."""
    job = jobs.make_job(rank, world_size, store_path, parallel=parallel, model=model)
    try:
        batches = job.batches(job.datasets.train, consumed=0, prefetch=0)
        losses, found = [], []
        for _ in range(3):
            job.optimizer.zero_grad()
            totals = engine.run_schedule(job.stage, job.wrapped, next(batches), ranks=job.ranks)
            job.optimizer.update(learning_rate=1e-2)
            losses.append(totals.loss)
            if generates:
                engine.synchronize_parameters(job.wrapped)
                with live_session(job.chunks, job.ranks) as session:
                    for sampling in (GREEDY, DRAWN):
                        completions = generate(session, PROMPTS, sampling, num_candidates=2)
                        found.append([completion.token_ids for completion in completions])
                assert all(chunk.training for chunk in job.chunks)
        return losses, found
    finally:
        engine.leave()


@pytest.fixture(scope="module")
def one_rank(gloo_pool):
    return gloo_pool.run(train, 1, {}, {}, True, init=False)[0][1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_live_weights_generate_alike_and_training_goes_on(gloo_pool, one_rank, layout):
    world_size, parallel = LAYOUTS[layout]
    results = gloo_pool.run(train, world_size, parallel, {}, True, init=False)
    plain = gloo_pool.run(train, world_size, parallel, {}, False, init=False)
    assert [losses for losses, _ in results] == [losses for losses, _ in plain]
    for _, found in results:
        assert found == one_rank
    assert one_rank[0] != one_rank[2], "other weights, other tokens"


def test_there_is_no_dropout(gloo_pool):
    """Nor does generating draw from the streams that dropout draws from."""
    dropout = {"attention_dropout": 0.5, "hidden_dropout": 0.5}
    with_it, without = (
        gloo_pool.run(train, 1, {}, dropout, generates, init=False)[0]
        for generates in (True, False)
    )
    assert with_it[0] == without[0]
    greedy = with_it[1][0]
    assert greedy[::2] == greedy[1::2], "candidates of greedy decoding are equal"
