"""Packed samples are apart on every layout: alone or packed, a sample has the same loss and
gradient, and what is packed with it does not change one bit of it."""

import itertools

import numpy as np
import pytest

from megatron_chimed import engine
from megatron_chimed.errors import ChimedError
from megatron_chimed.training.objectives.next_token import NextTokenObjective
from megatron_chimed.training.selftest import check_isolation
from tests.distributed import families, jobs
from tests.distributed.test_layouts import assert_gradients_agree, assert_traces_agree
from tests.tiers import full_but

# Lengths of the samples of each pack; the first fills it, the third leaves much padding.
PACKS = ((20, 12), (1, 9, 14, 2), (8,), (11, 13, 5))
PP4 = {"pipeline_parallel_size": 4}
LAYOUTS = {
    "1 rank": (jobs.ONE, {}),
    "1 rank, reference": (jobs.ONE, {"attention_backend": "reference"}),
    "1 rank, full recompute": (jobs.ONE, {"recompute": "full"}),
    "1 rank, selective recompute": (jobs.ONE, {"recompute": "selective"}),
    "TP2": (jobs.TP2, {}),
    "TP2+SP, selective recompute": (jobs.TP2_SP, {"recompute": "selective"}),
    "PP2": (jobs.PP2, {}),
    "PP2, reference, full recompute": (
        jobs.PP2,
        {"attention_backend": "reference", "recompute": "full"},
    ),
    "PP2xVPP2": (jobs.PP2_VPP2, {}),
    "TP2xPP2": ({**jobs.TP2, **jobs.PP2}, {}),
    "TP2xPP2xVPP2+SP, full recompute": ({**jobs.TP2_SP, **jobs.PP2_VPP2}, {"recompute": "full"}),
    "PP4": (PP4, {}),
}
KEPT = (
    "1 rank",
    "TP2+SP, selective recompute",
    "PP2, reference, full recompute",
    "PP4",
    "TP2xPP2xVPP2+SP, full recompute",
)


def sequence(number, length):
    """Tokens of a sample and which of them are targets; a function of its number."""
    generator = np.random.default_rng(number)
    tokens = generator.integers(0, jobs.VOCAB_SIZE, length)
    return tokens, generator.random(length) < 0.7


def lay(sequences):
    """The arrays of one row, written out plainly."""
    row = {
        "tokens": np.zeros(jobs.SEQ_LENGTH, np.int64),
        "labels": np.zeros(jobs.SEQ_LENGTH, np.int64),
        "position_ids": np.zeros(jobs.SEQ_LENGTH, np.int64),
        "loss_mask": np.zeros(jobs.SEQ_LENGTH, np.float32),
        "segment_ids": np.full(jobs.SEQ_LENGTH, len(sequences), np.int32),
    }
    place = 0
    for segment, (tokens, is_target) in enumerate(sequences):
        for i, token in enumerate(tokens):
            row["tokens"][place] = token
            row["position_ids"][place] = i
            row["segment_ids"][place] = segment
            if i + 1 < len(tokens):
                row["labels"][place] = tokens[i + 1]
                row["loss_mask"][place] = is_target[i + 1]
            place += 1
    return row


class Packed:
    """The packs, over and over."""

    samples_per_epoch = len(PACKS)

    def __getitem__(self, index):
        pack = index % len(PACKS)
        first = sum(map(len, PACKS[:pack]))
        return lay([sequence(first + i, length) for i, length in enumerate(PACKS[pack])])

    def locate(self, index):
        return f"pack {index}"


class Alone(Packed):
    """The same samples, each in a row of its own; no segments, so attention is plainly causal."""

    samples_per_epoch = sum(map(len, PACKS))

    def __getitem__(self, index):
        number = index % self.samples_per_epoch
        row = lay([sequence(number, list(itertools.chain(*PACKS))[number])])
        del row["segment_ids"]
        return row


def batch_of(size):
    return {"micro_batch_size": 1, "global_batch_size": size}


@pytest.fixture(scope="module")
def alone(gloo_pool):
    """One step over the samples in rows of their own, at one rank."""
    training = batch_of(Alone.samples_per_epoch)
    return one_step(gloo_pool, jobs.ONE, {}, samples=Alone(), training=training)


def one_step(gloo_pool, parallel, model, **options):
    results = gloo_pool.run(
        jobs.trace,
        jobs.world_size(parallel),
        init=False,
        parallel=parallel,
        model=model,
        steps=1,
        look_at=(1,),
        **options,
    )
    return results[0], jobs.assemble([result["gradients"][1] for result in results])


@pytest.mark.parametrize("name", full_but(KEPT, LAYOUTS))
def test_packed_samples_train_like_samples_alone(gloo_pool, alone, name):
    """Losses, gradient norms and every gradient within 1e-5."""
    parallel, model = LAYOUTS[name]
    training = batch_of(len(PACKS))
    result, gradients = one_step(gloo_pool, parallel, model, samples=Packed(), training=training)
    assert_traces_agree(result, alone[0])
    assert_gradients_agree(gradients, alone[1])


@pytest.mark.parametrize(
    "layout", full_but(["TP2+SP, selective recompute"], ("1 rank", *KEPT[1:4]))
)
@pytest.mark.parametrize("name", full_but(["all"], families.OPTIONS))
def test_packed_samples_train_alike_with_every_option(gloo_pool, name, layout):
    (parallel, model), options = LAYOUTS[layout], families.OPTIONS[name]
    alone, expected = one_step(
        gloo_pool, jobs.ONE, options, samples=Alone(), training=batch_of(Alone.samples_per_epoch)
    )
    result, gradients = one_step(
        gloo_pool, parallel, {**options, **model}, samples=Packed(), training=batch_of(len(PACKS))
    )
    assert_traces_agree(result, alone)
    assert_gradients_agree(gradients, expected)


def losses_beside_others(rank, world_size, store_path, **options):
    """(pack, segment, changed segment) -> the segment's loss without and with that change."""
    job = jobs.make_job(rank, world_size, store_path, **options)
    try:
        batches = job.batches(job.datasets.train, consumed=0, prefetch=0)
        micro_batches = next(batches)
        found = {}
        for pack, segment in ((0, 0), (0, 1), (1, 2), (3, 1)):
            before = segment_loss(job, micro_batches, pack, segment, None)
            for changed in range(len(PACKS[pack]) + 1):  # padding, too
                after = segment_loss(job, micro_batches, pack, segment, changed)
                found[pack, segment, changed] = before, after
        return found
    finally:
        engine.leave()


def segment_loss(job, micro_batches, pack, segment, changed):
    """Sum over one segment, of a pass with backward, so that recomputation is in force."""
    given = []
    for number, batch in enumerate(micro_batches):
        segments = batch["segment_ids"]
        is_scored = (segments == segment) & (number == pack)
        tokens = batch["tokens"]
        if changed is not None:
            tokens = (tokens + 7 * (segments == changed) * (number == pack)) % jobs.VOCAB_SIZE
        given.append({**batch, "tokens": tokens, "loss_mask": is_scored.float()})
    if job.ranks.layout.virtual_pipeline_parallel_size == 1:
        given = given[pack : pack + 1]  # interleaved stages need them all
    job.optimizer.zero_grad()
    return engine.run_schedule(job.objective, job.wrapped, given, ranks=job.ranks).loss_sum


@pytest.mark.parametrize("name", full_but(KEPT[:-1], LAYOUTS))
def test_a_sample_does_not_see_what_is_packed_with_it(gloo_pool, name):
    """Bit for bit; only a change of the sample itself changes its loss."""
    parallel, model = LAYOUTS[name]
    results = gloo_pool.run(
        losses_beside_others,
        jobs.world_size(parallel),
        init=False,
        parallel=parallel,
        model=model,
        samples=Packed(),
        training=batch_of(len(PACKS)),
    )
    for result in results:
        for (_, segment, changed), (before, after) in result.items():
            assert (before == after) == (segment != changed)


class LeakyObjective(NextTokenObjective):
    """Forgets the segments on the chunks that hold some layer."""

    layer = 0

    def forward(self, batch, model):
        if self.layer in getattr(model, "module", model).layer_indices:
            batch = {name: array for name, array in batch.items() if name != "segment_ids"}
        return super().forward(batch, model)


def self_test(rank, world_size, store_path, *, leaky_layer=None, **options):
    job = jobs.make_job(rank, world_size, store_path, **options)
    try:
        before = engine.rng_state()
        if leaky_layer is not None:
            job.objective.__class__ = LeakyObjective
            job.objective.layer = leaky_layer
        said = check_isolation(job)
        assert job.chunks[0].training
        assert engine.rng_state() == before
        return said
    except ChimedError as error:
        return str(error)
    finally:
        engine.leave()


SELF_TESTS = {
    "1 rank": (jobs.ONE, 1),
    "DP2, gather overlapped": (
        {**jobs.DP2_DISTRIBUTED, "overlap_grad_reduce": True, "overlap_param_gather": True},
        2,
    ),
    "TP2xPP2xVPP2+SP": ({**jobs.TP2_SP, **jobs.PP2_VPP2}, 1),
}


@pytest.mark.parametrize("name", SELF_TESTS)
def test_the_self_test_passes_on_the_product(gloo_pool, name):
    parallel, data_parallel_size = SELF_TESTS[name]
    said = gloo_pool.run(
        self_test,
        jobs.world_size(parallel, data_parallel_size),
        init=False,
        parallel=parallel,
        model={"hidden_dropout": 0.1, "attention_dropout": 0.1},
        samples=Packed(),
        training={"micro_batch_size": 2, "global_batch_size": 8},
    )
    assert all("keep their loss" in line and "to the last bit" in line for line in said)


@pytest.mark.parametrize(
    ("parallel", "layer"), full_but([(jobs.PP2, 3)], [(jobs.ONE, 0), (jobs.PP2, 3), (PP4, 1)])
)
def test_the_self_test_finds_a_stage_that_leaks(gloo_pool, parallel, layer):
    """Middle stages that did not know the segments were a real fault of a real framework."""
    said = gloo_pool.run(
        self_test,
        jobs.world_size(parallel),
        init=False,
        parallel=parallel,
        samples=Packed(),
        leaky_layer=layer,
    )
    assert all("packed samples leak into each other" in each for each in said)


def test_samples_that_are_not_packed_need_no_self_test(gloo_pool):
    assert gloo_pool.run(self_test, 1, init=False, parallel=jobs.ONE) == [None]


def test_a_run_goes_on_as_if_there_had_been_no_self_test(gloo_pool, tmp_path):
    """Where weights are gathered during a forward pass, the self-test's passes come first."""
    parallel, data_parallel_size = SELF_TESTS["DP2, gather overlapped"]
    losses = []
    for self_test in (True, False):
        (records, _) = gloo_pool.run(
            jobs.run,
            data_parallel_size,
            init=False,
            parallel=parallel,
            samples=Packed(),
            output_dir=str(tmp_path / str(self_test)),
            training={"train_steps": 4, "self_test": self_test},
        )
        losses.append([record["loss"] for record in records])
    assert losses[0] == losses[1]
