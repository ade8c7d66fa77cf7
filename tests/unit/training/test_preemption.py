"""Ctrl-C and SIGTERM: what is saved and printed, and that a resumed run equals a whole one."""

import datetime
import json
import os
import signal
import threading
import time

import pytest
import torch.distributed as dist

import megatron_chimed.training.validation as validating
from megatron_chimed.data.datasets.config import Datasets
from megatron_chimed.engine.agreement import Agreement
from megatron_chimed.errors import InterruptError, ParallelError
from megatron_chimed.observe.logger import RunLogger
from megatron_chimed.training import loop
from megatron_chimed.training.preemption import Preemption
from tests.distributed import jobs
from tests.unit.training import run

TRAINING = {"train_steps": 4, "eval_interval": 2}
BATCHES = jobs.RandomSamples.samples_per_epoch // jobs.GLOBAL_BATCH_SIZE
CTRL_C = (signal.SIGINT, InterruptError, 130)
SIGTERM = (signal.SIGTERM, ParallelError, 75)


@pytest.fixture
def send(monkeypatch):
    """Sends a signal in the n-th call of a function of an owner."""

    def at(owner, name, count, number):
        original, calls = getattr(owner, name), []

        def call(*args, **kwargs):
            calls.append(name)
            if len(calls) == count:
                os.kill(os.getpid(), number)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    return at


def events(folder):
    """What a run measured, without times."""
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return [
        (event["kind"], event["step"], event["loss"])
        for event in map(json.loads, lines)
        if event["kind"] in ("train", "valid", "test")
    ]


def stopped(tmp_path, kind, **options):
    with pytest.raises(kind) as caught:
        run.train(tmp_path, training=TRAINING, **options)
    return str(caught.value)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run: its outcome and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    return run.train(folder, training=TRAINING)[0], folder


@pytest.mark.parametrize(("number", "kind", "code"), [CTRL_C, SIGTERM])
def test_the_current_step_is_saved(tmp_path, send, whole, number, kind, code):
    assert kind.exit_code == code
    send(RunLogger, "step", 3, number)
    said = stopped(tmp_path, kind)
    checkpoint = tmp_path / "run/checkpoints/iter_0000003"
    assert said.endswith(
        f": step 3 is saved in {checkpoint}. Start the same command again to resume."
    )
    run.train(tmp_path, training=TRAINING)
    assert events(tmp_path) == events(whole[1])


@pytest.mark.parametrize(("number", "kind", "code"), [CTRL_C, SIGTERM])
@pytest.mark.parametrize(("step", "batch"), [(2, 1), (4, 2)])
def test_a_validation_is_cut_short_and_done_first_after_resuming(
    tmp_path, send, whole, number, kind, code, step, batch
):
    """On the way, and after the last step."""
    send(validating, "run_schedule", (step // 2 - 1) * BATCHES + batch, number)
    said = stopped(tmp_path, kind)
    assert f": step {step} is saved in " in said
    assert said.endswith(" Its validation was cut short and will be done first.")
    assert ("valid", step) not in [event[:2] for event in events(tmp_path)]
    outcome, _ = run.train(tmp_path, training=TRAINING)
    assert sorted(events(tmp_path)) == sorted(events(whole[1]))
    assert (outcome.valid_loss, outcome.best_step) == (whole[0].valid_loss, whole[0].best_step)
    best = [folder / "run/checkpoints/best" for folder in (tmp_path, whole[1])]
    assert best[0].read_text() == best[1].read_text()


def test_a_validation_that_was_just_done_is_kept(tmp_path, send, whole):
    send(validating, "run_schedule", BATCHES, signal.SIGINT)
    assert "cut short" not in stopped(tmp_path, InterruptError)
    run.train(tmp_path, training=TRAINING)
    assert events(tmp_path) == events(whole[1])


def test_what_comes_in_the_last_step_ends_no_run_that_ends_anyway(tmp_path, send):
    send(RunLogger, "step", 4, signal.SIGTERM)
    data = Datasets(train=jobs.RandomSamples(), valid=None, test=None, order={})
    outcome, _ = run.train(tmp_path, datasets=data, training={"train_steps": 4})
    assert (outcome.steps, outcome.checkpoint.name) == (4, "iter_0000004")


def test_before_the_first_step_there_is_nothing_to_save(tmp_path, send):
    send(loop, "check_isolation", 1, signal.SIGINT)
    said = stopped(tmp_path, InterruptError)
    assert said == (
        "stopped by Ctrl-C: before the first step, so there is nothing to save. Start the same "
        "command again."
    )
    assert not list((tmp_path / "run").glob("checkpoints/iter_*"))


def test_a_test_at_the_end_is_cut_short_too(tmp_path, send):
    data = Datasets(train=jobs.RandomSamples(), valid=None, test=jobs.RandomSamples(), order={})
    send(validating, "run_schedule", 1, signal.SIGINT)
    said = stopped(tmp_path, InterruptError, datasets=data)
    assert "step 4 is saved in " in said
    assert said.endswith("Its test was cut short and will be done first.")
    run.train(tmp_path, datasets=data, training=TRAINING)
    assert events(tmp_path)[-1][:2] == ("test", 4)


@pytest.mark.timing
@pytest.mark.parametrize(
    ("numbers", "code"),
    [
        ((signal.SIGINT, signal.SIGINT), 130),
        ((signal.SIGINT, signal.SIGTERM), 130),  # torchrun's second
        ((signal.SIGTERM, signal.SIGTERM, signal.SIGINT), 130),  # schedulers send it twice
    ],
)
@pytest.mark.parametrize("saved", [True, False])
def test_the_second_ctrl_c_quits_at_once_in_the_midst_of_a_wait(
    tmp_path, monkeypatch, capfd, numbers, code, saved
):
    """The main thread waits in C++ for a peer, where no handler in Python can run."""
    store = dist.FileStore(str(tmp_path / "store"), 2)
    ends = []

    def end(code):
        ends.append(code)
        dist.FileStore(str(tmp_path / "store"), 2).set("peer", "here")  # lets the test go on

    monkeypatch.setattr(os, "_exit", end)
    if saved:
        (tmp_path / "iter_0000007").mkdir()

    def press():
        for number in numbers[:-1]:
            os.kill(os.getpid(), number)
            time.sleep(0.2)  # one that comes before the last was taken would be the same one
        while not ends:
            os.kill(os.getpid(), numbers[-1])
            time.sleep(0.2)

    thread = threading.Thread(target=press)
    with Preemption(Agreement(), tmp_path) as preemption:
        thread.start()
        store.set_timeout(datetime.timedelta(seconds=30))
        store.get("peer")
        assert preemption.requested() in numbers
        thread.join()
    assert ends[0] == code
    said = capfd.readouterr().err.split("\n")
    assert "the current step is finished and saved" in said[1]
    kept = (
        f"the same command resumes from {tmp_path / 'iter_0000007'}"
        if saved
        else "nothing was saved"
    )
    assert said[3].startswith(f"quit at once: the current step is lost; {kept}")


def test_afterwards_signals_are_what_they_were(tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Preemption(Agreement(), tmp_path) as preemption:
        assert preemption.requested() is None and not preemption.is_requested()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(5)
