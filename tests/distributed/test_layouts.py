"""Every layout trains the same model: losses, gradient norms and gradients over 20 steps, fp32.

`make test` trains most layouts for 10 steps.
"""

import math

import numpy as np
import pytest

from tests.distributed import jobs
from tests.tiers import full_but

STEPS, FEWER_STEPS = 20, 10
LOOK_AT = (1, 5, FEWER_STEPS, STEPS)
FULL, SELECTIVE = {"recompute": "full"}, {"recompute": "selective"}
OVERLAP = {"overlap_grad_reduce": True}

# name -> (parallel section, data-parallel size, model section)
CASES = {
    "1 rank, full recompute": (jobs.ONE, 1, FULL),
    "1 rank, selective recompute": (jobs.ONE, 1, SELECTIVE),
    "TP2": (jobs.TP2, 1, {}),
    "TP2, full recompute": (jobs.TP2, 1, FULL),
    "TP2+SP": (jobs.TP2_SP, 1, {}),
    "TP2+SP, selective recompute": (jobs.TP2_SP, 1, SELECTIVE),
    "TP4+SP": ({"tensor_parallel_size": 4, "sequence_parallel": True}, 1, {}),
    "PP2": (jobs.PP2, 1, {}),
    "PP2, selective recompute": (jobs.PP2, 1, SELECTIVE),
    "PP2 uneven": ({**jobs.PP2, "pipeline_split": (1, 3)}, 1, {}),
    "PP4": ({"pipeline_parallel_size": 4}, 1, FULL),
    "PP2xVPP2": (jobs.PP2_VPP2, 1, {}),
    "PP2xVPP2, full recompute": (jobs.PP2_VPP2, 1, FULL),
    "DP2": (jobs.ONE, 2, {}),
    "DP2, overlapped reduce": (OVERLAP, 2, {}),
    "DP2 distributed optimizer": (jobs.DP2_DISTRIBUTED, 2, {}),
    "DP4 distributed optimizer": (jobs.DP2_DISTRIBUTED, 4, {}),
    "DP2 distributed optimizer, overlapped": (
        {**jobs.DP2_DISTRIBUTED, **OVERLAP, "overlap_param_gather": True},
        2,
        SELECTIVE,
    ),
    "TP2xPP2": ({**jobs.TP2, **jobs.PP2}, 1, {}),
    "TP2xPP2+SP, selective recompute": ({**jobs.TP2_SP, **jobs.PP2}, 1, SELECTIVE),
    "TP2xPP2xVPP2+SP": ({**jobs.TP2_SP, **jobs.PP2_VPP2}, 1, FULL),
    "PP2xVPP2xDP2 distributed optimizer, overlapped": (
        {**jobs.PP2_VPP2, **jobs.DP2_DISTRIBUTED, **OVERLAP, "overlap_param_gather": True},
        2,
        {},
    ),
}


# Together they have every setting that a case has, the two long ones every kind of parallelism.
LONG = ("TP2xPP2xVPP2+SP", "PP2xVPP2xDP2 distributed optimizer, overlapped")
SHORT = (
    "1 rank, full recompute",
    "TP2+SP, selective recompute",
    "PP2 uneven",
    "PP4",
    "DP2",
    "DP2 distributed optimizer, overlapped",
    "TP2xPP2",
)
KEPT = [(name, STEPS) for name in LONG] + [(name, FEWER_STEPS) for name in SHORT]


@pytest.fixture(scope="module")
def one_rank(gloo_pool):
    """With the fused ops; all others compare with it, or with its first steps."""
    (result,) = gloo_pool.run(
        jobs.trace, 1, init=False, parallel=jobs.ONE, look_at=LOOK_AT, backend="fused", steps=STEPS
    )
    return result


@pytest.mark.parametrize(
    ("name", "steps"),
    full_but(KEPT, [(name, STEPS) for name in CASES] + [(name, FEWER_STEPS) for name in SHORT]),
)
def test_a_layout_trains_like_one_rank(gloo_pool, one_rank, name, steps):
    parallel, data_parallel_size, model = CASES[name]
    results = gloo_pool.run(
        jobs.trace,
        jobs.world_size(parallel, data_parallel_size),
        init=False,
        parallel=parallel,
        model=model,
        look_at=LOOK_AT,
        steps=steps,
    )
    assert all(result["padding_is_zero"] for result in results)
    assert_ranks_agree(results, one_rank, steps)


def assert_ranks_agree(results, alone, steps):
    """Losses, norms and gradients of all ranks with the first steps of one rank's."""
    for result in results:
        assert len(result["losses"]) == steps
        assert_traces_agree(result, first_steps(alone, steps))
    for step in [step for step in LOOK_AT if step <= steps]:
        assert_gradients_agree(
            jobs.assemble([result["gradients"][step] for result in results]),
            jobs.assemble([alone["gradients"][step]]),
        )


def first_steps(trace, steps):
    return {name: trace[name][:steps] for name in ("losses", "norms")}


@pytest.mark.parametrize(
    ("split", "data_parallel_size", "parallel"),
    [((2, 1, 1, 2), 1, {}), ((1, 3, 1, 1), 2, jobs.DP2_DISTRIBUTED)],
)
def test_uneven_interleaved_stages_train_like_one_rank(
    gloo_pool, split, data_parallel_size, parallel
):
    common = {"init": False, "steps": 6, "look_at": (1, 6), "model": {"num_layers": 6}}
    (alone,) = gloo_pool.run(jobs.trace, 1, parallel=jobs.ONE, **common)
    parallel = {**jobs.PP2_VPP2, **parallel, "pipeline_split": split}
    results = gloo_pool.run(jobs.trace, 2 * data_parallel_size, parallel=parallel, **common)
    for result in results:
        assert_traces_agree(result, alone)
    for step in (1, 6):
        assert_gradients_agree(
            jobs.assemble([result["gradients"][step] for result in results]),
            jobs.assemble([alone["gradients"][step]]),
        )


def test_fused_and_plain_ops_train_alike(gloo_pool, one_rank):
    """10 steps at one rank and at TP2+SP, losses and gradient norms within 1e-5."""
    for parallel in (jobs.ONE, jobs.TP2_SP):
        plain, *_ = gloo_pool.run(
            jobs.trace,
            jobs.world_size(parallel),
            init=False,
            parallel=parallel,
            backend="reference",
            steps=10,
        )
        assert_traces_agree(plain, first_steps(one_rank, 10))


def test_attention_back_ends_give_the_same_gradients(gloo_pool, one_rank):
    """One step only: where a gradient is zero in exact arithmetic (queries that see one key), the
    back ends leave other rounding noise, and Adam scales noise up to a full step."""
    (result,) = gloo_pool.run(
        jobs.trace,
        1,
        init=False,
        parallel=jobs.ONE,
        model={"attention_backend": "reference"},
        steps=1,
        look_at=(1,),
    )
    assert result["losses"][0] == pytest.approx(one_rank["losses"][0], rel=1e-6)
    assert_gradients_agree(
        jobs.assemble([result["gradients"][1]]), jobs.assemble([one_rank["gradients"][1]])
    )


def assert_traces_agree(result, expected):
    """Losses within 1e-5 max(1, |b|), norms within 1e-5 relative."""
    for ours, theirs in zip(result["losses"], expected["losses"], strict=True):
        assert abs(ours - theirs) <= 1e-5 * max(1.0, abs(theirs))
    for ours, theirs in zip(result["norms"], expected["norms"], strict=True):
        assert abs(ours - theirs) <= 1e-5 * theirs


def assert_gradients_agree(result, expected):
    """||a - b|| <= 1e-5 ||b|| for each tensor; absolutely 1e-7 where ||b|| < 1e-2."""
    assert result.keys() == expected.keys()
    for key, theirs in expected.items():
        difference = np.linalg.norm(result[key].astype(np.float64) - theirs)
        size = np.linalg.norm(theirs.astype(np.float64))
        assert difference <= (1e-7 if size < 1e-2 else 1e-5 * size), key


def test_the_loss_falls(one_rank):
    assert one_rank["losses"][0] == pytest.approx(math.log(jobs.VOCAB_SIZE), abs=0.1)
    assert one_rank["losses"][-1] < one_rank["losses"][0]


@pytest.mark.t_way(1)
@pytest.mark.parametrize("parallel", [jobs.ONE, jobs.TP2_SP], ids=["one", "TP2+SP"])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_follows_fp32(gloo_pool, one_rank, precision, parallel):
    """No bit claim: 1 % of the loss over 10 steps."""
    results = gloo_pool.run(
        jobs.trace,
        jobs.world_size(parallel),
        init=False,
        parallel=parallel,
        training={"precision": precision},
        optim={"initial_loss_scale": 256.0},
        steps=10,
    )
    assert results[0]["losses"] == pytest.approx(one_rank["losses"][:10], rel=0.01)
    assert results[0]["norms"] == pytest.approx(one_rank["norms"][:10], rel=0.05)


def test_fp16_skips_overflowing_steps_and_halves_the_scale(gloo_pool):
    (result,) = gloo_pool.run(
        jobs.trace,
        1,
        init=False,
        parallel=jobs.ONE,
        steps=16,
        training={"precision": "fp16"},
        optim={"initial_loss_scale": 2.0**20},
    )
    skipped = [math.isnan(norm) for norm in result["norms"]]
    assert skipped[0]
    assert not skipped[-1]
    assert result["scales"][-1] < 2.0**20
    assert all(math.isfinite(loss) for loss in result["losses"])


@pytest.mark.parametrize(
    "parallel",
    full_but([jobs.TP2_SP, jobs.PP2], [jobs.ONE, jobs.TP2, jobs.TP2_SP, jobs.PP2]),
    ids=["one", "TP2", "TP2+SP", "PP2"],
)
def test_the_loss_in_chunks_is_the_loss(gloo_pool, one_rank, parallel):
    """Chunks that do not divide the tokens of a micro-batch; the logits never exist whole."""
    results = gloo_pool.run(
        jobs.trace,
        jobs.world_size(parallel),
        init=False,
        parallel=parallel,
        model={"loss_chunk_tokens": 13},
        look_at=LOOK_AT,
        steps=5,
    )
    assert_ranks_agree(results, one_rank, 5)
