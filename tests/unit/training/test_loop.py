"""The loop: when it ends, what it keeps, and that numbers that are not finite change nothing."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from megatron_chimed.checkpoint.commit import committed
from megatron_chimed.checkpoint.reader import CheckpointReader, newest_checkpoint
from megatron_chimed.config.checkpoint import CheckpointConfig
from megatron_chimed.config.training import TrainConfig
from megatron_chimed.data.datasets.config import Datasets
from megatron_chimed.errors import CheckpointError, ConfigError, NumericError
from megatron_chimed.observe.timers import Stopwatch
from megatron_chimed.training import loop, state
from megatron_chimed.training.objectives.next_token import NextTokenObjective
from tests.distributed import jobs
from tests.unit.training import run


def steps_of(folder):
    return sorted(int(path.name.removeprefix("iter_")) for path in committed(folder))


@pytest.fixture
def scripted(monkeypatch):
    """Makes validation give the losses of a list, in order."""

    def give(losses):
        left = list(losses)

        def fake(job, source, is_stopped):
            return loop_totals(left.pop(0))

        monkeypatch.setattr(loop, "validate", fake)
        return left

    return give


def loop_totals(loss):
    from megatron_chimed.engine import Totals

    return Totals(loss_sum=loss, count=1, metrics={})


def test_it_stops_when_patience_ends_and_keeps_the_best(tmp_path, scripted):
    left = scripted([3.0, 2.0, 2.5, 2.0, 1.0])
    training = {"train_steps": 50, "eval_interval": 2, "early_stop_patience": 2}
    outcome, _ = run.train(tmp_path, training=training)
    assert left == [1.0], "a fifth validation ran"
    assert (outcome.steps, outcome.stopped_early) == (8, True)
    assert (outcome.valid_loss, outcome.best_step) == (2.0, 4)
    kept = steps_of(tmp_path / "run" / "checkpoints")
    assert kept[0] == 4 and kept[-1] == 8, "the best and the last are there"
    assert outcome.checkpoint.name == "iter_0000008"
    progress = CheckpointReader(outcome.checkpoint).state["progress"]
    assert progress["best_step"] == 4 and progress["validations_since_best"] == 2


@pytest.mark.parametrize("patience", [0, 5])
@pytest.mark.parametrize("save_interval", [0, 1])
def test_the_best_checkpoint_outlives_later_ones(tmp_path, scripted, patience, save_interval):
    scripted([3.0, 1.0, 2.0, 2.0, 2.0, 2.0])
    training = {"train_steps": 6, "eval_interval": 1, "early_stop_patience": patience}
    checkpoint = {"save_interval": save_interval, "keep": 2}
    outcome, _ = run.train(tmp_path, training=training, checkpoint=checkpoint)
    assert (outcome.steps, outcome.best_step, outcome.stopped_early) == (6, 2, False)
    folder = tmp_path / "run" / "checkpoints"
    assert steps_of(folder) == ([2, 5, 6] if save_interval else [2, 6])
    assert (folder / "best").read_text() == "iter_0000002\n"
    assert newest_checkpoint(folder / "best") == folder / "iter_0000002"
    assert newest_checkpoint(tmp_path / "run").name == "iter_0000006"


def test_a_better_one_takes_the_place_of_the_best(tmp_path, scripted):
    scripted([3.0, 1.0, 2.0, 0.5, 2.0, 2.0])
    training = {"train_steps": 6, "eval_interval": 1}
    run.train(tmp_path, training=training, checkpoint={"save_interval": 1})
    folder = tmp_path / "run" / "checkpoints"
    assert steps_of(folder) == [4, 5, 6]
    assert (folder / "best").read_text() == "iter_0000004\n"


def test_a_resumed_run_still_knows_the_best(tmp_path, scripted):
    """It is kept by whoever goes on, and named again where the file was lost."""
    scripted([1.0, 2.0, 2.0, 2.0, 2.0])
    training = {"train_steps": 5, "eval_interval": 1}
    run.train(tmp_path, training={**training, "stop_step": 2})
    folder = tmp_path / "run" / "checkpoints"
    (folder / "best").unlink()
    outcome, _ = run.train(tmp_path, training=training, checkpoint={"save_interval": 1})
    assert steps_of(folder) == [1, 4, 5]
    assert (folder / "best").read_text() == "iter_0000001\n"
    assert (outcome.best_step, outcome.valid_loss) == (1, 1.0)


def test_without_keep_best_only_the_newest_are_kept(tmp_path, scripted):
    scripted([1.0, 2.0, 2.0, 2.0])
    training = {"train_steps": 4, "eval_interval": 1, "early_stop_patience": 9}
    checkpoint = {"save_interval": 1, "keep_best": False}
    run.train(tmp_path, training=training, checkpoint=checkpoint)
    folder = tmp_path / "run" / "checkpoints"
    assert steps_of(folder) == [3, 4]
    assert not (folder / "best").exists()


def test_a_file_that_names_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "best").write_text("../elsewhere\n")
    with pytest.raises(CheckpointError, match="which is no checkpoint beside it"):
        newest_checkpoint(tmp_path / "best")


def test_by_default_a_run_loses_at_most_a_hundred_steps(tmp_path):
    assert CheckpointConfig() == CheckpointConfig(save_interval=100, keep=2, keep_best=True)


def events(tmp_path, kind):
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] == kind]


def test_the_start_is_validated_once_and_is_no_best(tmp_path, scripted):
    """A resumed run does not do it again, and keeps the event."""
    left = scripted([0.5, 3.0, 2.0, 2.5, 2.5, 9.9])
    training = {"train_steps": 9, "eval_interval": 1, "early_stop_patience": 2}
    training["eval_at_start"] = True
    first, _ = run.train(tmp_path, training={**training, "stop_step": 2})
    assert (first.valid_loss, first.best_step, first.stopped_early) == (2.0, 2, False)
    outcome, said = run.train(tmp_path, training=training)
    assert "at step 2" in said
    assert (outcome.best_step, outcome.steps, outcome.stopped_early, left) == (2, 4, True, [9.9])
    validated = [(event["step"], event["loss"]) for event in events(tmp_path, "valid")]
    assert validated == [(0, 0.5), (1, 3.0), (2, 2.0), (3, 2.5), (4, 2.5)]


def test_validating_the_start_changes_nothing(tmp_path):
    """It measures the weights before any step: of fresh ones, the logarithm of the vocabulary."""
    model = {"hidden_dropout": 0.1}
    plain, _ = run.train(tmp_path / "plain", model=model, training={"train_steps": 2})
    training = {"train_steps": 2, "eval_at_start": True}
    outcome, _ = run.train(tmp_path, model=model, training=training)
    assert (outcome.loss, outcome.valid_loss) == (plain.loss, plain.valid_loss)
    start, end = events(tmp_path, "valid")
    assert (start["step"], end["step"]) == (0, 2)
    assert start["loss"] == pytest.approx(math.log(jobs.VOCAB_SIZE), abs=0.2) != end["loss"]


def test_a_run_that_was_out_of_patience_does_not_go_on(tmp_path, scripted):
    scripted([1.0, 2.0])
    training = {"train_steps": 9, "eval_interval": 1, "early_stop_patience": 1}
    first, _ = run.train(tmp_path, training=training)
    again, said = run.train(tmp_path, training=training)
    assert (first.steps, again.steps) == (2, 2)
    assert again.stopped_early and again.loss is None and again.checkpoint is None
    assert "at step 2" in said


def test_patience_outlives_a_stop(tmp_path, scripted):
    """One validation without progress before the stop and one after it make two."""
    training = {"train_steps": 9, "eval_interval": 1, "early_stop_patience": 2}
    scripted([1.0, 2.0])
    first, _ = run.train(tmp_path, training={**training, "stop_step": 2})
    assert (first.steps, first.stopped_early) == (2, False)
    left = scripted([3.0, 0.5])
    second, _ = run.train(tmp_path, training=training)
    assert (second.steps, second.stopped_early, left) == (3, True, [0.5])


def test_stop_step_ends_and_saves_within_the_same_schedule(tmp_path):
    whole, _ = run.train(tmp_path / "a", training={"train_steps": 6})
    first, _ = run.train(tmp_path, training={"train_steps": 6, "stop_step": 4})
    assert (first.steps, first.stopped_early) == (4, False)
    assert steps_of(tmp_path / "run" / "checkpoints") == [4]
    second, said = run.train(tmp_path, training={"train_steps": 6})
    assert "iter_0000004 at step 4" in said
    assert second.steps == 6 and second.loss == whole.loss


def test_a_stop_step_that_is_past_does_nothing(tmp_path):
    run.train(tmp_path, training={"train_steps": 3})
    outcome, _ = run.train(tmp_path, training={"train_steps": 9, "stop_step": 2})
    assert (outcome.steps, outcome.loss, outcome.checkpoint) == (3, None, None)


def test_the_last_step_is_validated_and_saved(tmp_path):
    outcome, _ = run.train(tmp_path, training={"train_steps": 3})
    assert outcome.best_step == 3 and outcome.valid_loss > 0
    assert steps_of(tmp_path / "run" / "checkpoints") == [3]


def test_without_validation_data_none_is_run(tmp_path, scripted):
    scripted([])
    data = Datasets(train=jobs.RandomSamples(), valid=None, test=None, order={})
    outcome, _ = run.train(tmp_path, datasets=data, training={"train_steps": 2, "eval_interval": 1})
    assert (outcome.valid_loss, outcome.best_step) == (None, None)


@pytest.mark.parametrize(
    "training", [{"eval_at_start": True}, {"eval_interval": 1, "early_stop_patience": 2}]
)
def test_settings_that_need_validation_data_are_refused_without(tmp_path, training):
    data = Datasets(train=jobs.RandomSamples(), valid=None, test=None, order={})
    with pytest.raises(ConfigError, match="no validation data, so it would do nothing"):
        run.train(tmp_path, datasets=data, training={"train_steps": 2, **training})
    assert not (tmp_path / "run").exists()


def test_steps_that_save_and_that_are_kept(tmp_path):
    training = {"train_steps": 7}
    outcome, _ = run.train(tmp_path, training=training, checkpoint={"save_interval": 2, "keep": 3})
    # The last step is the best one validated: the newest three, and nothing else.
    assert steps_of(tmp_path / "run" / "checkpoints") == [4, 6, 7]
    assert outcome.checkpoint.name == "iter_0000007"


def first_batches(job, count=1):
    batches = job.batches(job.datasets.train, consumed=0, prefetch=0)
    return [next(batches) for _ in range(count)]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("key", ["lm_head.weight", "model.layers.2.mlp.up_proj.weight"])
def test_a_weight_that_is_no_number_stops_before_anything_changes(tmp_path, key, precision):
    with run.job(tmp_path, training={"precision": precision}) as job:
        shards = {shard.key: shard.tensor for shard in job.shards()}
        shards[key][3, 5] = math.nan
        before = run.weights(job)
        with pytest.raises(NumericError) as caught:
            loop.train_step(job, first_batches(job)[0], Stopwatch())
        assert run.same(run.weights(job), before)
        assert (job.progress.step, job.progress.consumed_samples) == (0, 0)
    assert "the loss of step 1 is nan: no weight was changed" in str(caught.value)
    assert "Its samples are 0..7" in str(caught.value)


class InfiniteSlope(NextTokenObjective):
    """A finite loss whose gradient is not: the square root at zero."""

    def loss(self, output, batch):
        loss_sum, count, metrics = super().loss(output, batch)
        return loss_sum + (loss_sum * 0).sqrt(), count, metrics


@pytest.mark.parametrize("distributed", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gradient_that_is_no_number_changes_no_weight(tmp_path, precision, distributed):
    parallel = {"distributed_optimizer": distributed}
    with run.job(tmp_path, parallel=parallel, training={"precision": precision}) as job:
        job = dataclasses.replace(job, objective=InfiniteSlope(job.objective.token_loss))
        before = run.weights(job)
        with pytest.raises(NumericError, match="the gradient norm is nan: no weight was changed"):
            loop.train_step(job, first_batches(job)[0], Stopwatch())
        assert run.same(run.weights(job), before)
        assert job.progress.step == 0


def test_a_failed_run_leaves_no_checkpoint(tmp_path):
    with run.job(tmp_path) as job:
        job = dataclasses.replace(job, objective=InfiniteSlope(job.objective.token_loss))
        with pytest.raises(NumericError):
            loop.train(job, run_id="test", starts_from=state.restore(job))
    assert not committed(tmp_path / "run" / "checkpoints")


def test_fp16_overflow_skips_the_step_and_lowers_the_scale(tmp_path):
    """2^60 overflows every gradient: the step is counted, no weight moves, the scale falls."""
    with run.job(
        tmp_path, training={"precision": "fp16"}, optim={"initial_loss_scale": 2.0**60}
    ) as job:
        before = run.weights(job)
        records = [loop.train_step(job, b, Stopwatch()) for b in first_batches(job, 4)]
        assert all(record.skipped and math.isnan(record.grad_norm) for record in records)
        assert all(math.isfinite(record.loss) for record in records)
        assert run.same(run.weights(job), before)
        assert job.progress.step == 4
    scales = [record.loss_scale for record in records]
    assert scales[0] == 2.0**60 and scales[-1] < scales[0]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_step_is_reported_as_it_was(tmp_path, precision):
    """2^16 would overflow in fp16: the loss is a sum, so a logit's gradient is up to the scale."""
    optim = {"initial_loss_scale": 2.0**10}
    with run.job(tmp_path, training={"precision": precision}, optim=optim) as job:
        record = loop.train_step(job, first_batches(job)[0], Stopwatch())
        assert job.progress.consumed_samples == jobs.GLOBAL_BATCH_SIZE
    assert record.step == 1 and not record.skipped
    assert record.tokens == jobs.GLOBAL_BATCH_SIZE * jobs.SEQ_LENGTH
    masks = [jobs.RandomSamples()[i]["loss_mask"] for i in range(jobs.GLOBAL_BATCH_SIZE)]
    assert record.counted == np.sum(masks)
    assert record.consumed_samples == jobs.GLOBAL_BATCH_SIZE
    assert record.learning_rate == 1e-3 and record.seconds > 0
    assert record.loss == pytest.approx(math.log(jobs.VOCAB_SIZE), abs=0.2)
    assert (record.loss_scale is None) == (precision != "fp16")


def reference_steps(job, count):
    """The same steps by torch alone: AdamW over fp32 weights, clipped by the whole norm."""
    (chunk,) = job.chunks
    copies = {n: p.detach().clone().requires_grad_() for n, p in chunk.named_parameters()}
    groups = [
        {"params": [p for p in copies.values() if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in copies.values() if p.dim() == 1], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=jobs.OPTIM["adam_eps"])
    norms = []
    for batches in first_batches(job, count):
        loss_sum, tokens = 0.0, 0
        for batch in batches:
            logits = torch.func.functional_call(
                chunk, copies, (batch["tokens"], batch["position_ids"])
            )
            true = logits.transpose(0, 1)[..., : jobs.VOCAB_SIZE]  # [b, s, v]
            losses = torch.nn.functional.cross_entropy(
                true.flatten(0, 1), batch["labels"].flatten(), reduction="none"
            )
            loss_sum = loss_sum + (losses * batch["loss_mask"].flatten()).sum()
            tokens += int(batch["loss_mask"].sum())
        adam.zero_grad()
        (loss_sum / tokens).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(copies.values(), 1.0)))
        adam.step()
    return copies, norms


def test_three_steps_are_those_of_torch(tmp_path):
    """Clipping, weight decay of matrices alone, and the mean over all tokens of the batch."""
    with run.job(tmp_path, backend="reference") as job:  # its gradients are autograd's own
        copies, norms = reference_steps(job, 3)
    with run.job(tmp_path) as job:
        records = [loop.train_step(job, b, Stopwatch()) for b in first_batches(job, 3)]
        for name, parameter in job.chunks[0].named_parameters():
            error = (parameter - copies[name]).norm() / copies[name].norm()
            # Adam scales rounding noise of small gradients up; decay alone would be 3e-4.
            assert error < 5e-5, name
    assert [r.grad_norm for r in records] == pytest.approx(norms, rel=1e-5)
    assert max(norms) > 1.0, "clipping is not seen"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train_steps": 0}, "--training.train_steps is 0: it must be at least 1"),
        ({"micro_batch_size": 0}, "--training.micro_batch_size is 0"),
        ({"global_batch_size": -1}, "--training.global_batch_size is -1"),
        ({"eval_interval": -1}, "--training.eval_interval is -1: set 0 or more"),
        ({"eval_steps": -1}, "--training.eval_steps is -1"),
        ({"stop_step": -1}, "--training.stop_step is -1"),
        ({"seed": -1}, "--training.seed is -1"),
        ({"early_stop_patience": 2}, "Set --training.eval_interval too"),
    ],
)
def test_a_setting_out_of_range_is_named(fields, message):
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**{"train_steps": 1, **fields})
    assert message in str(caught.value)


def test_metrics_hold_every_step(tmp_path):
    run.train(tmp_path, training={"train_steps": 4, "eval_interval": 2})
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    steps = [row["step"] for row in rows if "grad_norm" in row]
    assert steps == [1, 2, 3, 4]
    losses = [row["loss"] for row in rows if "grad_norm" in row]
    assert np.isfinite(losses).all()
    assert (tmp_path / "run" / "loss_curve.png").read_bytes().startswith(b"\x89PNG")
