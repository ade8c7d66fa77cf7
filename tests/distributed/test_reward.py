"""The reward stage: losses and gradients of every layout are those of plain torch on one rank."""

import pytest

from megatron_chimed.errors import ChimedError
from megatron_chimed.training.objectives.reward import RewardObjective
from megatron_chimed.training.selftest import check_isolation
from tests.distributed import jobs, ranked
from tests.distributed.test_layouts import assert_gradients_agree, assert_traces_agree
from tests.tiers import full_but

OPTIONS = {
    "samples": ranked.Ranked(),
    "training": {"micro_batch_size": 1, "global_batch_size": len(ranked.PACKS)},
    "init": False,
}
REWARD = {"head": "score"}
STEPS = 4
LAYOUTS = {
    "micro-batches of 2": (jobs.ONE, 1, {}, 2),
    "reference attention, full recompute": (
        jobs.ONE,
        1,
        {"attention_backend": "reference", "recompute": "full"},
        1,
    ),
    "TP2": (jobs.TP2, 1, {}, 1),
    "TP2+SP": (jobs.TP2_SP, 1, {"recompute": "selective"}, 2),
    "PP2": (jobs.PP2, 1, {}, 1),
    "PP2xVPP2": (jobs.PP2_VPP2, 1, {}, 1),
    "DP2": (jobs.ONE, 2, {}, 2),
    "DP2, distributed optimizer": (jobs.DP2_DISTRIBUTED, 2, {}, 1),
    "TP2xPP2": ({**jobs.TP2, **jobs.PP2}, 1, {}, 1),
}


def make_reward(token_loss):
    return RewardObjective()


def trace(gloo_pool, parallel, data_parallel_size=1, model=None, micro_batch_size=1):
    results = gloo_pool.run(
        jobs.trace,
        jobs.world_size(parallel, data_parallel_size),
        parallel=parallel,
        make_objective=make_reward,
        model=REWARD | (model or {}),
        steps=STEPS,
        look_at=(1, STEPS),
        **OPTIONS | {"training": OPTIONS["training"] | {"micro_batch_size": micro_batch_size}},
    )
    gradients = {
        step: jobs.assemble([result["gradients"][step] for result in results])
        for step in (1, STEPS)
    }
    return results[0], gradients


@pytest.fixture(scope="module")
def one_rank(gloo_pool):
    return trace(gloo_pool, jobs.ONE)


def test_loss_and_gradients_are_those_of_the_papers_formula(gloo_pool, one_rank):
    """On each answer alone, so packed is unpacked, too."""
    (weights,) = gloo_pool.run(
        ranked.whole_weights, 1, parallel={}, make_objective=make_reward, model=REWARD, **OPTIONS
    )
    loss, gradients = ranked.reward_loss(weights)
    result, found = one_rank
    assert result["losses"][0] == pytest.approx(loss, rel=1e-5)
    assert_gradients_agree(found[1], gradients)


@pytest.mark.parametrize(
    "name",
    full_but(
        ["reference attention, full recompute", "TP2+SP", "PP2xVPP2", "DP2", "TP2xPP2"], LAYOUTS
    ),
)
def test_a_layout_trains_like_one_rank(gloo_pool, one_rank, name):
    result, gradients = trace(gloo_pool, *LAYOUTS[name])
    assert_traces_agree(result, one_rank[0])
    for step in (1, STEPS):
        assert_gradients_agree(gradients[step], one_rank[1][step])


def test_the_loss_falls(one_rank):
    losses = one_rank[0]["losses"]
    assert losses[-1] < losses[0] - 0.1


class LeakyReward(RewardObjective):
    """Forgets the segments on the last stage."""

    def forward(self, batch, model):
        if getattr(model, "module", model).post_process:
            batch = {name: array for name, array in batch.items() if name != "segment_ids"}
        return super().forward(batch, model)


def make_leaky(token_loss):
    return LeakyReward()


def self_test(rank, world_size, store_path, **options):
    job = jobs.make_job(rank, world_size, store_path, **options)
    try:
        return check_isolation(job)
    except ChimedError as error:
        return str(error)
    finally:
        jobs.engine.leave()


def test_the_self_test_knows_groups(gloo_pool):
    options = {"parallel": jobs.PP2, "model": REWARD, **OPTIONS}
    said = gloo_pool.run(self_test, 2, make_objective=make_reward, **options)
    assert all("1 groups of answers keep their loss" in line for line in said)
    leak = "packed samples leak into each other: the loss of 1 group"
    said = gloo_pool.run(self_test, 2, make_objective=make_leaky, **options)
    assert all(leak in line for line in said)
