"""metrics.jsonl: one line per event, restarts leave each step once, NaN survives."""

import json
import math

import pytest

from megatron_chimed.errors import DataError
from megatron_chimed.observe.metrics import MetricsFile, read_metrics


def write_steps(path, first, last, *, resume_step=0):
    metrics = MetricsFile(path, resume_step=resume_step)
    for step in range(first, last + 1):
        metrics.write({"kind": "train", "step": step, "loss": 1 / step})
    metrics.close()


def steps_of(path):
    return [event["step"] for event in read_metrics(path)]


def test_each_event_is_on_disk_before_the_next(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    metrics = MetricsFile(path)
    metrics.write({"kind": "train", "step": 1, "loss": 0.1 + 0.2})
    assert json.loads(path.read_text()) == {"kind": "train", "step": 1, "loss": 0.1 + 0.2}
    metrics.close()


def test_resume_drops_what_lies_past_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_steps(path, 1, 8)
    kept = path.read_text().splitlines(keepends=True)[:5]
    write_steps(path, 6, 7, resume_step=5)
    assert steps_of(path) == [1, 2, 3, 4, 5, 6, 7]
    assert path.read_text().startswith("".join(kept))
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_fresh_run_replaces_an_older_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_steps(path, 1, 8)
    write_steps(path, 1, 2)
    assert steps_of(path) == [1, 2]


def test_non_finite_numbers_are_strict_json_and_come_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path)
    event = {"kind": "train", "step": 1, "loss": math.nan, "high": math.inf, "low": -math.inf}
    metrics.write(event)
    metrics.close()
    strict = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert (strict["loss"], strict["high"], strict["low"]) == ("NaN", "Infinity", "-Infinity")
    [read] = read_metrics(path)
    assert math.isnan(read["loss"])
    assert (read["high"], read["low"]) == (math.inf, -math.inf)


@pytest.mark.parametrize("tail", ['{"kind": "tr', '{"kind": "train", "step": 4', "\0\0\0", "药"])
def test_half_written_last_line_is_ignored_and_dropped_on_resume(tmp_path, tail):
    path = tmp_path / "metrics.jsonl"
    write_steps(path, 1, 3)
    with open(path, "ab") as stream:
        stream.write(tail.encode()[:-1] if tail == "药" else tail.encode())
    assert steps_of(path) == [1, 2, 3]
    write_steps(path, 4, 4, resume_step=9)
    assert steps_of(path) == [1, 2, 3, 4]


@pytest.mark.parametrize("line", ["{broken", '{"kind": "train"}', '{"kind": 1, "step": 2}', "[]"])
def test_damaged_line_is_an_error_that_leaves_the_file_alone(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    write_steps(path, 1, 1)
    text = path.read_text() + line + "\n" + path.read_text()
    path.write_text(text)
    with pytest.raises(DataError, match=r"metrics\.jsonl line 2 is not a metrics event"):
        MetricsFile(path, resume_step=1)
    assert path.read_text() == text
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]
