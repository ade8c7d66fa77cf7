"""Losses of sources: small with hundreds of them, readable, and nothing lost."""

import json

import pytest

from megatron_chimed.observe import logger
from megatron_chimed.observe.logger import SOURCE_LOSSES_NAME
from megatron_chimed.observe.metrics import read_metrics
from megatron_chimed.observe.sinks import scalars_of
from megatron_chimed.observe.sources import SourceSums, describe_sources, shorten
from tests.unit.observe.test_logger import open_logger, record, scalars


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """They take most of the time, and are another test's."""
    monkeypatch.setattr(logger, "write_loss_curve", lambda *_: False)


def sums(step, num_sources):
    """Source k has k + 1 tokens of loss k + step each."""
    return {f"folder/source_{k}": ((k + 1.0) * (k + step), k + 1.0) for k in range(num_sources)}


def test_hundreds_of_sources_take_little_room_and_lose_nothing(tmp_path):
    with open_logger(tmp_path, total_steps=130) as log:
        for step in range(1, 131):
            log.step(record(step, sources=sums(step, 500)))
    path = tmp_path / "metrics.jsonl"
    assert path.stat().st_size / 130 < 1000, "bytes a step; each step's own were 16 kB"
    events = [event for event in read_metrics(path) if event["kind"] == "sources"]
    assert [(event["step"], event["steps"]) for event in events] == [(100, 100), (130, 30)]
    for k in (0, 499):
        tokens = [event[f"tokens/folder/source_{k}"] for event in events]
        losses = [event[f"loss/folder/source_{k}"] for event in events]
        assert tokens == [100 * (k + 1), 30 * (k + 1)]
        assert losses == pytest.approx([k + 50.5, k + 115.5])
    assert (tmp_path / SOURCE_LOSSES_NAME).stat().st_size > 10_000


def test_a_checkpoint_leaves_nothing_that_a_resumed_run_would_lose(tmp_path):
    with open_logger(tmp_path, source_interval=10) as log:
        for step in range(1, 5):
            log.step(record(step, sources=sums(step, 2)))
            if step == 3:
                log.event("checkpoint", 3, path="iter_3")
    with open_logger(tmp_path, source_interval=10, start_step=3) as log:
        log.step(record(4, sources=sums(4, 2)))
    events = [e for e in read_metrics(tmp_path / "metrics.jsonl") if e["kind"] == "sources"]
    assert [(event["step"], event["steps"]) for event in events] == [(3, 3), (4, 1)]


def test_an_error_on_its_way_out_leaves_what_was_summed(tmp_path):
    with pytest.raises(ZeroDivisionError), open_logger(tmp_path, source_interval=10) as log:
        log.step(record(1, sources=sums(1, 2)))
        raise ZeroDivisionError
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["steps"] == 1


def test_few_sources_are_recorded_at_every_step():
    found = SourceSums(0)
    found.add({"a": (2.0, 1.0), "b": (0.0, 0.0)})
    assert found.is_due
    assert found.take() == {"steps": 1, "loss/a": 2.0, "tokens/a": 1}
    assert found.take() == {}


def test_the_log_names_all_of_few_and_the_worst_of_many(tmp_path, capsys):
    with open_logger(tmp_path, progress="plain") as log:
        log.validation(7, 2.5, sources=sums(1, 3))
        log.validation(8, 2.5, sources=sums(1, 500))
    lines = [line for line in capsys.readouterr().out.splitlines() if "validation" in line]
    assert lines == [
        "validation at step 7  loss 2.5000",
        "validation at step 7  losses of sources: folder/source_0 1.0000, folder/source_1 2.0000, "
        "folder/source_2 3.0000",
        "validation at step 8  loss 2.5000",
        "validation at step 8  worst of 500 sources: folder/source_499 500.0000, "
        "folder/source_498 499.0000, folder/source_497 498.0000, folder/source_496 497.0000",
    ]
    valid = [e for e in read_metrics(tmp_path / "metrics.jsonl") if e["kind"] == "valid"]
    assert len([name for name in valid[1] if name.startswith("loss/")]) == 500


def test_names_are_short_in_the_display_alone():
    long = "a/very/long/path/to/some/folder/of/sources/dialogues_2024"
    assert shorten(long) == "a/very/l...rces/dialogues_2024"[:8] + "..." + long[-21:]
    assert len(shorten(long)) == 32
    assert long not in describe_sources({long: 1.0})
    assert scalars_of({"kind": "sources", "step": 1, f"loss/{long}": 1.0}) == {
        f"train_sources/{long}": 1.0
    }


def test_tensorboard_groups_sources_apart(tmp_path):
    with open_logger(tmp_path, tensorboard=True) as log:
        log.step(record(1, loss=1.5, sources={"a": (2.0, 1.0)}))
        log.validation(1, 2.5, sources={"a": (3.0, 1.0)}, accuracy=0.5)
    assert scalars(tmp_path, "train_sources/a") == [(1, 2.0)]
    assert scalars(tmp_path, "valid_sources/a") == [(1, 3.0)]
    assert scalars(tmp_path, "train/loss") == [(1, 1.5)]
    assert scalars(tmp_path, "valid/accuracy") == [(1, 0.5)]
