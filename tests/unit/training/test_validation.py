"""Validation counts every sample once, at any batch size and over any number of ranks."""

import dataclasses
import random

import pytest
import torch
import torch.nn.functional as F

from megatron_chimed import engine
from megatron_chimed.training.validation import validate
from tests.distributed import jobs
from tests.unit.training import run


class Samples(jobs.RandomSamples):
    """A number of samples that few batch sizes divide."""

    def __init__(self, count):
        self.samples_per_epoch = count


def expected(model, count):
    """Sum and number of masked token losses, one sample at a time, by torch's cross-entropy."""
    loss_sum, tokens = 0.0, 0
    with torch.no_grad():
        for index in range(count):
            sample = {k: torch.from_numpy(v)[None] for k, v in Samples(count)[index].items()}
            logits = model(sample["tokens"], sample["position_ids"]).transpose(0, 1)
            losses = F.cross_entropy(
                logits[0, :, : jobs.VOCAB_SIZE], sample["labels"][0], reduction="none"
            )
            loss_sum += float((losses * sample["loss_mask"][0]).sum())
            tokens += int(sample["loss_mask"].sum())
    return loss_sum, tokens


# (samples, micro batch, global batch): dividing, not dividing, fewer samples than a batch.
@pytest.mark.parametrize("sizes", [(24, 2, 8), (23, 2, 8), (17, 3, 6), (5, 4, 8), (1, 2, 4)])
def test_every_sample_counts_once(tmp_path, sizes):
    count, micro_batch_size, global_batch_size = sizes
    batch = {"micro_batch_size": micro_batch_size, "global_batch_size": global_batch_size}
    # Dropout must be off meanwhile.
    with run.job(tmp_path, training=batch, model={"hidden_dropout": 0.5}) as job:
        totals = validate(job, Samples(count))
        assert all(chunk.training for chunk in job.chunks), "training goes on with dropout"
        for chunk in job.chunks:
            chunk.eval()
        loss_sum, tokens = expected(job.chunks[0], count)
    assert totals.count == tokens
    assert totals.loss_sum == pytest.approx(loss_sum, rel=1e-6)
    assert totals.loss == pytest.approx(loss_sum / tokens, rel=1e-6)


def validate_on_ranks(rank, world_size, store_path, parallel, count):
    batch = {"micro_batch_size": 2, "global_batch_size": 8}
    job = jobs.make_job(rank, world_size, store_path, parallel=parallel, training=batch)
    try:
        totals = validate(job, Samples(count))
        return totals.loss_sum, totals.count
    finally:
        engine.leave()


@pytest.mark.parametrize("count", [24, 19, 3])
def test_ranks_share_the_samples(gloo_pool, tmp_path, count):
    with run.job(tmp_path) as job:
        loss_sum, tokens = expected(job.chunks[0], count)
    for parallel in ({}, {"pipeline_parallel_size": 2}, {"tensor_parallel_size": 2}):
        results = gloo_pool.run(validate_on_ranks, 2, parallel, count, init=False)
        for found_sum, found_tokens in results:
            assert found_tokens == tokens
            assert found_sum == pytest.approx(loss_sum, rel=1e-6)


def test_eval_steps_bound_the_batches(tmp_path):
    training = {"micro_batch_size": 2, "global_batch_size": 4, "eval_steps": 2}
    with run.job(tmp_path, training=training) as job:
        few = validate(job, Samples(23))
        _, tokens = expected(job.chunks[0], 8)
        whole = dataclasses.replace(job.config.training, eval_steps=100)
        many_config = dataclasses.replace(job.config, training=whole)
        many = validate(dataclasses.replace(job, config=many_config), Samples(23))
        assert many.count == expected(job.chunks[0], 23)[1]
    assert few.count == tokens


def test_validating_changes_nothing(tmp_path):
    with run.job(tmp_path, model={"attention_dropout": 0.3}) as job:
        before, streams = run.weights(job), engine.rng_state()
        random_state = random.getstate()
        first = validate(job, Samples(10))
        assert run.same(run.weights(job), before)
        assert engine.rng_state() == streams
        assert random.getstate() == random_state
        assert validate(job, Samples(10)) == first
        assert job.progress.consumed_samples == 0
