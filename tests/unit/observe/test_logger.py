"""RunLogger end to end: what each place that shows a run ends up with."""

import math
import subprocess
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megatron_chimed.errors import ConfigError, DataError, NumericError
from megatron_chimed.observe import logger as logger_module
from megatron_chimed.observe.logger import LogConfig, RunLogger, StepRecord
from megatron_chimed.observe.metrics import read_metrics
from megatron_chimed.observe.progress import (
    format_count,
    format_duration,
    make_progress,
)

FIRST_LINE = (
    "TFLOP/s are per device (4) and of the model: 2 GFLOP/token = 6*(P - V*h) - 2*F + 6*L*a*S per "
    "token (a: heads x head size, F weights frozen, causal attention halved, recompute not counted)"
)


def open_logger(folder, *, start_step=0, is_writer=True, total_steps=20, **config):
    return RunLogger(
        LogConfig(**{"progress": "off", "tensorboard": False} | config),
        folder,
        total_steps=total_steps,
        start_step=start_step,
        flops_per_token=2e9,
        num_devices=4,
        is_writer=is_writer,
    )


def record(step, **changes):
    values = {
        "step": step,
        "loss": 10 / step,
        "learning_rate": 1e-4,
        "grad_norm": 0.5,
        "tokens": 8000,
        "counted": 5000,
        "seconds": 2.0,
        "consumed_samples": 4 * step,
    }
    return StepRecord(**values | changes)


def scalars(folder, tag):
    accumulator = EventAccumulator(str(folder / "tensorboard"))
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(tag)]


def test_metrics_hold_the_step_and_the_derived_figures(tmp_path):
    with open_logger(tmp_path) as log:
        log.step(record(1, loss_scale=1024.0, metrics={"accuracy": 0.75}))
        log.validation(1, 2.5, bits_per_byte=1.25)
        log.event("checkpoint", 1, path="iter_0000001")
    events = read_metrics(tmp_path / "metrics.jsonl")
    for event in events:
        del event["time"]
    assert events == [
        {"kind": "start", "step": 0, "total_steps": 20, "num_devices": 4},
        {
            "kind": "train",
            "step": 1,
            "loss": 10.0,
            "learning_rate": 1e-4,
            "grad_norm": 0.5,
            "tokens": 8000,
            "counted": 5000,
            "seconds": 2.0,
            "consumed_samples": 4,
            "skipped": False,
            "loss_scale": 1024.0,
            "tokens_per_second": pytest.approx(4000.0),
            "tflops_per_device": pytest.approx(4000 * 2e9 / 4 / 1e12),
            "eta_seconds": pytest.approx(19 * 2.0),
            "accuracy": 0.75,
        },
        {"kind": "valid", "step": 1, "loss": 2.5, "bits_per_byte": 1.25},
        {"kind": "checkpoint", "step": 1, "path": "iter_0000001"},
    ]


def test_resumed_run_shows_each_step_once(tmp_path):
    with open_logger(tmp_path, tensorboard=True) as log:
        for step in range(1, 9):
            log.step(record(step, loss=1.0))
            log.validation(step, 5.0)
    with open_logger(tmp_path, tensorboard=True, start_step=5) as log:
        for step in range(6, 8):
            log.step(record(step, loss=2.0))
            log.validation(step, 6.0)
    events = read_metrics(tmp_path / "metrics.jsonl")
    losses = [(event["step"], event["loss"]) for event in events if event["kind"] == "train"]
    expected = [(step, 1.0) for step in range(1, 6)] + [(6, 2.0), (7, 2.0)]
    assert losses == expected
    assert scalars(tmp_path, "train/loss") == expected
    assert scalars(tmp_path, "valid/loss")[-3:] == [(5, 5.0), (6, 6.0), (7, 6.0)]


def test_tensorboard_shows_non_finite_values_and_stage_metrics(tmp_path):
    with open_logger(tmp_path, tensorboard=True) as log:
        log.step(record(1, grad_norm=math.inf, skipped=True, metrics={"accuracy": 0.5}))
    assert scalars(tmp_path, "train/grad_norm") == [(1, math.inf)]
    assert scalars(tmp_path, "train/skipped") == [(1, 1.0)]
    assert scalars(tmp_path, "train/accuracy") == [(1, 0.5)]


def test_plain_records_come_for_first_interval_skipped_and_last_step(tmp_path, capsys):
    with open_logger(tmp_path, progress="auto", log_interval=10) as log:
        for step in range(1, 15):
            skipped = step == 4
            log.step(record(step, skipped=skipped, grad_norm=math.nan if skipped else 0.5))
    out = capsys.readouterr().out
    tail = "4k tokens/s  2 TFLOP/s  ETA"
    assert out.splitlines() == [
        FIRST_LINE,
        f"step  1/20  loss 10.0000  lr 1.00e-04  grad norm 0.5  {tail} 0:00:38",
        "step  4/20  SKIPPED (gradients not finite)  loss 2.5000  lr 1.00e-04  grad norm nan  "
        f"{tail} 0:00:32",
        f"step 10/20  loss 1.0000  lr 1.00e-04  grad norm 0.5  {tail} 0:00:20",
        f"loss curve: {tmp_path / 'loss_curve.png'}",
        f"step 14/20  loss 0.7143  lr 1.00e-04  grad norm 0.5  {tail} 0:00:12",
    ]
    assert "\x1b" not in out and "\r" not in out


def test_last_step_of_a_whole_run_is_printed_once(tmp_path, capsys):
    with open_logger(tmp_path, progress="plain", log_interval=100, start_step=18) as log:
        log.step(record(19))
        log.step(record(20))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    assert [line.split()[1] for line in lines] == ["19/20", "20/20"]


def test_off_prints_messages_only(tmp_path, capsys):
    with open_logger(tmp_path) as log:
        log.step(record(1))
        log.message("[red]kept as is")
    assert capsys.readouterr().out.splitlines()[1:] == [
        "[red]kept as is",
        f"loss curve: {tmp_path / 'loss_curve.png'}",
    ]


def test_live_display_keeps_messages_and_ends_with_the_last_values(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    with open_logger(tmp_path, progress="rich") as log:
        for step in range(1, 21):
            log.step(record(step))
        log.message("[red]kept as is")
    out = capsys.readouterr().out
    assert "[red]kept as is" in out
    assert FIRST_LINE in out
    ending = out[out.index("loss curve:") :]
    assert "20/20" in ending
    assert "loss 0.5000  lr 1.00e-04  grad norm 0.5  4k tokens/s  2 TFLOP/s" in ending
    assert "\x1b[?25h" in ending, "the cursor is not shown again"


def test_other_ranks_write_nothing(tmp_path, capsys):
    folder = tmp_path / "run"
    with open_logger(folder, is_writer=False, tensorboard=True, progress="plain") as log:
        log.step(record(1))
        log.validation(1, 2.0)
        log.message("hidden")
    assert not folder.exists()
    assert capsys.readouterr().out == ""


def test_error_passes_through_and_leaves_the_metrics(tmp_path, monkeypatch):
    monkeypatch.setattr(logger_module, "write_loss_curve", pytest.fail)
    with pytest.raises(NumericError, match="loss is NaN"), open_logger(tmp_path) as log:
        log.step(record(1))
        raise NumericError("loss is NaN")
    assert [event["kind"] for event in read_metrics(tmp_path / "metrics.jsonl")] == [
        "start",
        "train",
    ]


def test_close_may_be_repeated_and_needs_no_step(tmp_path):
    log = open_logger(tmp_path)
    log.close()
    log.close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_damaged_metrics_stop_a_resume(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match="line 1 is not a metrics event"):
        open_logger(tmp_path, start_step=3)


def test_interval_below_one_is_refused():
    with pytest.raises(ConfigError, match=r"log_interval \(0\) is less than 1.*progress to off"):
        LogConfig(log_interval=0)


def test_auto_is_live_only_on_a_terminal(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    display = make_progress("auto", total_steps=1, start_step=0, log_interval=1)
    assert type(display).__name__ == "PlainProgress"
    monkeypatch.setenv("TERM", "xterm")
    display = make_progress("auto", total_steps=1, start_step=0, log_interval=1)
    display.close()
    assert type(display).__name__ == "RichProgress"


def test_numbers_for_people():
    assert [format_duration(s) for s in (0.4, 59.6, 3661, 90061)] == [
        "0:00:00",
        "0:01:00",
        "1:01:01",
        "1d 1:01:01",
    ]
    assert [format_count(n) for n in (0, 950, 4000, 12345, 4_560_000)] == [
        "0",
        "950",
        "4k",
        "12.3k",
        "4.56M",
    ]


def test_a_whole_run_is_logged_without_importing_torch(tmp_path):
    code = (
        "import sys; from megatron_chimed.observe.logger import *\n"
        "assert not {'tensorboard', 'matplotlib', 'rich'} & sys.modules.keys(), 'not lazy'\n"
        f"with RunLogger(LogConfig(), {str(tmp_path)!r}, total_steps=1, start_step=0, "
        "flops_per_token=1, num_devices=1, is_writer=True) as log:\n"
        "    log.step(StepRecord(step=1, loss=1, learning_rate=1, grad_norm=1, tokens=1, "
        "counted=1, seconds=1, consumed_samples=1))\n"
        "assert not {'torch', 'tensorflow'} & sys.modules.keys(), 'heavy import'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert (tmp_path / "loss_curve.png").stat().st_size > 10_000
