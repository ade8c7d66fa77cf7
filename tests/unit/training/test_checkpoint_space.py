"""What a run's checkpoints take is known before its first step, to the byte."""

import errno
import shutil

import pytest

from megatron_chimed.checkpoint import save
from megatron_chimed.checkpoint.reader import CheckpointReader
from megatron_chimed.config.checkpoint import CheckpointConfig
from megatron_chimed.config.training import TrainConfig
from megatron_chimed.errors import OutputError
from megatron_chimed.model import LoraConfig
from megatron_chimed.training import loop, state
from megatron_chimed.training.checkpoint_space import CheckpointSpace, plan_checkpoint_space
from tests.distributed import jobs
from tests.unit.training import run


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("head", ["lm", "score"])
@pytest.mark.parametrize("lora", [{}, {"rank": 4}])
def test_the_size_of_a_checkpoint_is_that_of_its_tensors(tmp_path, lora, head, precision):
    training = {"train_steps": 1, "precision": precision}
    with run.job(tmp_path, model={"head": head}, lora=lora, training=training) as job:
        job.progress.step = 1
        reader = CheckpointReader(state.save(job, "test"))
        room = plan(model=job.config.model, lora=LoraConfig(**lora), training=training)
    assert room.each == sum(tensor.size for tensor in reader.tensors.values())


def plan(*, model=jobs.MODEL, lora=None, training=None, checkpoint=None, validates=True):
    return plan_checkpoint_space(
        model,
        lora or LoraConfig(),
        TrainConfig(**{"train_steps": 1000, **(training or {})}),
        CheckpointConfig(**(checkpoint or {})),
        validates=validates,
    )


@pytest.mark.parametrize(
    ("training", "checkpoint", "validates", "count"),
    [
        ({}, {}, True, 3),  # the two newest and the one that is written
        ({"eval_interval": 50}, {}, True, 4),  # and the best
        ({"eval_interval": 50}, {}, False, 3),
        ({"eval_interval": 50}, {"keep_best": False}, True, 3),
        ({"eval_interval": 50}, {"keep": 5}, True, 7),
        ({"train_steps": 100}, {}, True, 1),  # only at the end
        ({"train_steps": 101}, {}, True, 2),
        ({"stop_step": 200}, {}, True, 2),
        ({}, {"save_interval": 0}, True, 1),
        ({"eval_interval": 500}, {"save_interval": 0}, True, 2),
        ({}, {"keep": 0}, True, 10),  # all of them
        ({"eval_interval": 50}, {"keep": 0}, True, 11),
    ],
)
def test_checkpoints_that_exist_at_once_are_counted(training, checkpoint, validates, count):
    assert plan(training=training, checkpoint=checkpoint, validates=validates).count == count


def test_a_run_has_never_more_checkpoints_than_that(tmp_path, monkeypatch):
    """Counted where the last one has been written and none has been removed."""
    most, original = [], save.commit.prune

    def count(root, *arguments):
        most.append(len(list(root.glob("iter_*"))))
        return original(root, *arguments)

    monkeypatch.setattr(save.commit, "prune", count)
    losses = iter([3.0, 2.0, *[2.5] * 20])
    monkeypatch.setattr(loop, "validate", lambda *_: loss_of(next(losses)))
    training, checkpoint = {"train_steps": 9, "eval_interval": 1}, {"save_interval": 2}
    run.train(tmp_path, training=training, checkpoint=checkpoint)
    assert max(most) == plan(training=training, checkpoint=checkpoint).count == 4


def loss_of(loss):
    from megatron_chimed.engine import Totals

    return Totals(loss_sum=loss, count=1, metrics={})


def disk(monkeypatch, free):
    usage = shutil._ntuple_diskusage(10**15, 0, free)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


ROOM = CheckpointSpace(each=10**9, count=3, end=300)


def test_a_disk_without_room_is_refused_and_says_what_helps(monkeypatch, tmp_path):
    disk(monkeypatch, 3 * 10**9)
    ROOM.require(tmp_path)
    disk(monkeypatch, 3 * 10**9 - 1)
    with pytest.raises(OutputError) as caught:
        ROOM.require(tmp_path)
    said = str(caught.value)
    assert f"{tmp_path} has no room for the run's checkpoints (3 of 1 GB at once): 3 GB" in said
    assert "3 GB free" in said and "--checkpoint.keep_best false" in said
    assert ROOM.describe(tmp_path).endswith("3 GB: too little, training would not start")


def test_checkpoints_that_are_there_need_no_room_again(monkeypatch, tmp_path):
    for step in (100, 200):
        (tmp_path / f"iter_{step:07d}").mkdir()
    disk(monkeypatch, 10**9)
    ROOM.require(tmp_path)
    disk(monkeypatch, 10**9 - 1)
    with pytest.raises(
        OutputError, match=r"1 of 1 GB at once besides the 2 existing ones\): 1 GB needed"
    ):
        ROOM.require(tmp_path)
    (tmp_path / "iter_0000300").mkdir()
    ROOM.require(tmp_path)  # the run is over and writes nothing


def test_a_save_that_finds_the_disk_full_says_the_same(monkeypatch, tmp_path):
    def full(path, *_):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(save, "write_safetensors", full)
    disk(monkeypatch, 5000)
    with pytest.raises(OutputError) as caught:
        run.train(tmp_path, training={"train_steps": 1})
    size = plan(training={"precision": "fp32"})
    said = str(caught.value)
    assert f"{tmp_path / 'run/checkpoints'} has no room for the checkpoint of step 1: " in said
    assert f"{size.each / 1e6:.3g} MB needed, 5 kB free. Free some space there, and start" in said
    assert not list((tmp_path / "run/checkpoints").iterdir()), "the unfinished one is left"
