"""Losses of sources apart: the same tokens, divided; and what a run says as it starts."""

import dataclasses

import numpy as np
import pytest
import torch

from megatron_chimed import engine
from megatron_chimed.data.datasets.blend import BlendedDataset
from megatron_chimed.data.datasets.config import Datasets
from megatron_chimed.observe.metrics import read_metrics
from megatron_chimed.training.objectives.next_token import TokenLossStage
from megatron_chimed.training.selftest import check_isolation
from tests.distributed import jobs
from tests.distributed.test_packing import Alone, Packed
from tests.unit.training import run

BATCH = {"micro_batch_size": 2, "global_batch_size": 8, "train_steps": 3}


class Shifted(jobs.RandomSamples):
    """Samples of another source."""

    def __getitem__(self, index):
        return super().__getitem__(index + 1000)


class Silent(jobs.RandomSamples):
    """Samples without a supervised token."""

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        return {**sample, "loss_mask": np.zeros_like(sample["loss_mask"])}


def blend(*sources):
    return BlendedDataset(sources, [3.0, 1.0][: len(sources)])


def test_a_step_reports_the_loss_of_each_source(tmp_path):
    samples = blend(jobs.RandomSamples(), Shifted())
    with run.job(tmp_path, samples=samples, sources=("a", "b"), training=BATCH) as job:
        micro_batches = next(job.batches(samples, consumed=0, prefetch=0))
        totals = engine.run_schedule(job.stage, job.wrapped, micro_batches, ranks=job.ranks)
        sums, counts = np.zeros(2), np.zeros(2)
        with torch.no_grad():
            for batch in micro_batches:
                logits = job.chunks[0](batch["tokens"], batch["position_ids"])
                losses = job.stage.token_loss(logits, batch["labels"]) * batch["loss_mask"]
                for row, source in enumerate(batch["source"]):
                    sums[source] += float(losses[row].sum())
                    counts[source] += float(batch["loss_mask"][row].sum())
    found = job.stage.by_source(totals)
    assert {name: tokens for name, (_, tokens) in found.items()} == {"a": counts[0], "b": counts[1]}
    assert [loss for loss, _ in found.values()] == pytest.approx(sums.tolist())
    assert totals.count == counts.sum()
    assert totals.loss_sum == pytest.approx(sums.sum(), rel=1e-6)


def test_a_source_without_tokens_in_a_step_has_no_loss(tmp_path):
    samples = blend(jobs.RandomSamples(), Silent())
    with run.job(tmp_path, samples=samples, sources=("a", "b"), training=BATCH) as job:
        micro_batches = next(job.batches(samples, consumed=0, prefetch=0))
        totals = engine.run_schedule(job.stage, job.wrapped, micro_batches, ranks=job.ranks)
    assert job.stage.by_source(totals).keys() == {"a"}


def test_one_source_is_the_loss_itself_and_nothing_more(tmp_path):
    with run.job(tmp_path) as job:
        assert job.stage.metric_names == ()
        totals = engine.Totals(loss_sum=1.0, count=1, metrics={})
        assert job.stage.averages(totals) == job.stage.by_source(totals) == {}


def test_ranks_sum_the_losses_of_sources(gloo_pool):
    """PP2 x DP2: the last stage has them, every rank is told."""
    options = {"samples": Mixed(), "sources": ("a", "b"), "training": BATCH, "init": False}
    (alone,) = gloo_pool.run(first_sources, 1, parallel={}, **options)
    for found in gloo_pool.run(first_sources, 4, parallel=jobs.PP2, **options):
        assert found == pytest.approx(alone, rel=1e-6)
    assert alone.keys() == {"a loss", "a tokens", "b loss", "b tokens"}


class Mixed(jobs.RandomSamples):
    """Every third sample is of the second source."""

    def __getitem__(self, index):
        return super().__getitem__(index) | {"source": np.int64(index % 3 == 2)}


def first_sources(rank, world_size, store_path, **options):
    job = jobs.make_job(rank, world_size, store_path, **options)
    try:
        micro_batches = next(job.batches(job.datasets.train, consumed=0, prefetch=0))
        totals = engine.run_schedule(job.stage, job.wrapped, micro_batches, ranks=job.ranks)
        sums = job.stage.by_source(totals).items()
        flat = {f"{name} loss": loss for name, (loss, _) in sums}
        return flat | {f"{name} tokens": tokens for name, (_, tokens) in sums}
    finally:
        engine.leave()


def test_a_run_logs_sources_in_training_and_validation(tmp_path):
    samples = blend(jobs.RandomSamples(), Shifted())
    datasets = Datasets(train=samples, valid=jobs.RandomSamples(), test=samples, order={})
    run.train(tmp_path, samples=samples, sources=("a", "b"), training=BATCH, datasets=datasets)
    events = [*read_metrics(tmp_path / "run" / "metrics.jsonl")]
    of_kind = {
        kind: [{key for key in event if key.startswith("loss/")} for event in events
               if event["kind"] == kind]
        for kind in ("train", "sources", "valid", "test")
    }  # fmt: skip
    assert of_kind["train"] == [set()] * 3
    assert of_kind["sources"] == [{"loss/a", "loss/b"}] * 3, "few sources: every step has its own"
    assert of_kind["valid"] == [set()], "its only source is the loss itself"
    assert of_kind["test"] == [{"loss/a", "loss/b"}]


def test_a_run_says_what_its_data_left_out_and_that_packs_are_apart(tmp_path, capsys):
    notes = ("data: 3 of 9 conversations are longer than 32 tokens: 3 dropped",)
    datasets = Datasets(train=Packed(), valid=None, test=None, order={}, notes=notes)
    with run.job(tmp_path, samples=Packed(), training=BATCH) as job:
        logging = dataclasses.replace(job.config.logging, progress="plain")
        job = dataclasses.replace(
            job, datasets=datasets, config=dataclasses.replace(job.config, logging=logging)
        )
        run.loop.train(job, run_id="test", starts_from=run.state.restore(job))
    out = " ".join(capsys.readouterr().out.split())
    assert notes[0] in out
    assert out.count("self-test: ") == 1 and "keep their loss" in out


def test_the_self_test_changes_nothing(tmp_path):
    """The same losses with it and without: it draws no random number and moves no weight."""
    model = {"hidden_dropout": 0.2}
    losses = []
    for number, self_test in enumerate((True, False)):
        training = {**BATCH, "self_test": self_test}
        folder = tmp_path / str(number)
        run.train(folder, samples=Packed(), training=training, model=model)
        events = read_metrics(folder / "run" / "metrics.jsonl")
        losses.append([event["loss"] for event in events if event["kind"] == "train"])
    assert losses[0] == losses[1]


class Single(Packed):
    """Rows of one sample each, which could have held more."""

    def __getitem__(self, index):
        row = Alone()[index]
        return {**row, "segment_ids": (row["position_ids"] < 0).astype(np.int32)}


def test_packs_of_one_sample_prove_nothing_and_it_says_so(tmp_path):
    with run.job(tmp_path, samples=Single()) as job:
        assert "no two samples are packed together" in check_isolation(job)


def test_the_stage_gives_segments_and_labels_to_the_model():
    seen = {}

    def model(tokens, positions, **rest):
        seen.update(rest)

    stage = TokenLossStage(token_loss=None)
    stage.forward({"tokens": 1, "position_ids": 2, "segment_ids": 3, "labels": 4}, model)
    assert seen == {"segment_ids": 3, "labels": 4}
    stage.forward({"tokens": 1, "position_ids": 2, "labels": 4}, model)
    assert seen == {"segment_ids": None, "labels": 4}
