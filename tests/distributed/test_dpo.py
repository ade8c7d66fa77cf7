"""The DPO stage: losses and gradients of every layout are those of plain torch on one rank."""

import functools

import numpy as np
import pytest

from megatron_chimed import engine
from megatron_chimed.config.dpo import DPOConfig
from megatron_chimed.training.objectives.dpo import AnswerLogProbs, DPOStage
from megatron_chimed.training.objectives.pairs import find_candidates
from tests.distributed import jobs, ranked
from tests.distributed.test_layouts import assert_gradients_agree, assert_traces_agree
from tests.distributed.test_reward import LAYOUTS, OPTIONS, STEPS
from tests.tiers import full_but

OBJECTIVES = {
    "sigmoid": {"beta": 0.1},
    "smoothed": {"beta": 0.5, "label_smoothing": 0.2},
    "ipo": {"beta": 0.2, "loss": "ipo"},
}


class WithReference(ranked.Ranked):
    """The packs with log-probabilities by another model, given in the order of all candidates."""

    def __init__(self, log_probs):
        self.log_probs = log_probs

    def __getitem__(self, index):
        row = super().__getitem__(index)
        pack = index % len(ranked.PACKS)
        first = sum(len(answers) for p in ranked.PACKS[:pack] for _, answers, _, _ in p)
        ends = np.flatnonzero(row["ranks"] >= 0)
        values = np.zeros(jobs.SEQ_LENGTH)
        values[ends] = self.log_probs[first : first + len(ends)]
        return row | {"reference_log_probs": values}


@pytest.fixture(scope="module")
def weights(gloo_pool):
    """Of the policy and of a reference that is not it."""
    return [
        gloo_pool.run(ranked.whole_weights, 1, parallel={}, seed=seed, **OPTIONS)[0]
        for seed in (1234, 5)
    ]


@pytest.fixture(scope="module")
def samples(weights):
    return WithReference(ranked.log_probs(weights[1]))


def make_dpo(token_loss, **objective):
    return DPOStage(token_loss, DPOConfig(**objective))


def trace(gloo_pool, samples, objective, layout=(jobs.ONE, 1, {}, 1), steps=STEPS):
    parallel, data_parallel_size, model, micro_batch_size = layout
    results = gloo_pool.run(
        jobs.trace,
        jobs.world_size(parallel, data_parallel_size),
        parallel=parallel,
        make_stage=functools.partial(make_dpo, **objective),
        model=model,
        steps=steps,
        look_at=(1, steps),
        **OPTIONS
        | {
            "samples": samples,
            "training": OPTIONS["training"] | {"micro_batch_size": micro_batch_size},
        },
    )
    gradients = {
        step: jobs.assemble([result["gradients"][step] for result in results])
        for step in (1, steps)
    }
    return results[0], gradients


@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_and_gradients_are_those_of_the_papers_formula(gloo_pool, weights, samples, name):
    """On each answer alone, so packed is unpacked, too."""
    objective = OBJECTIVES[name]
    loss, gradients = ranked.dpo_loss(
        *weights,
        beta=objective["beta"],
        kind=objective.get("loss", "sigmoid"),
        smoothing=objective.get("label_smoothing", 0.0),
    )
    result, found = trace(gloo_pool, samples, objective, steps=1)
    assert result["losses"][0] == pytest.approx(loss, rel=1e-5)
    assert_gradients_agree(found[1], gradients)


@pytest.fixture(scope="module")
def one_rank(gloo_pool, samples):
    return trace(gloo_pool, samples, OBJECTIVES["sigmoid"])


@pytest.mark.parametrize("name", full_but(["DP2", "TP2xPP2"], ["TP2", "PP2", "DP2", "TP2xPP2"]))
def test_a_layout_trains_like_one_rank(gloo_pool, samples, one_rank, name):
    result, gradients = trace(gloo_pool, samples, OBJECTIVES["sigmoid"], LAYOUTS[name])
    assert_traces_agree(result, one_rank[0])
    for step in (1, STEPS):
        assert_gradients_agree(gradients[step], one_rank[1][step])


def test_a_loss_in_chunks_is_the_same(gloo_pool, samples, one_rank):
    layout = (jobs.ONE, 1, {"loss_chunk_tokens": 8}, 1)
    result, gradients = trace(gloo_pool, samples, OBJECTIVES["sigmoid"], layout)
    assert_traces_agree(result, one_rank[0])
    assert_gradients_agree(gradients[1], one_rank[1][1])


def log_probs_of(rank, world_size, store_path, **options):
    """What our model says of each answer, in the order of the packs."""
    job = jobs.make_job(rank, world_size, store_path, **options)
    try:
        batches = next(job.batches(job.datasets.train, consumed=0, prefetch=0))
        found, answers = [], AnswerLogProbs(job.stage.token_loss)
        for batch in batches:
            output = answers.forward(batch, job.chunks[0])
            found += answers.sums(output, batch, find_candidates(batch)).tolist()
        return found
    finally:
        engine.leave()


def test_log_probabilities_are_those_of_transformers(gloo_pool, weights):
    (found,) = gloo_pool.run(log_probs_of, 1, parallel={}, **OPTIONS)
    assert found == pytest.approx(ranked.log_probs(weights[0]), abs=2e-5)
