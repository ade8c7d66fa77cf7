"""Weights & Biases and SwanLab, offline; and what becomes of a place that fails."""

import importlib.util
import json
import math
import signal
import socket
import subprocess
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megatron_chimed.errors import ConfigError
from megatron_chimed.observe import logger as logger_module
from megatron_chimed.observe import trackers
from megatron_chimed.observe.metrics import read_metrics
from megatron_chimed.observe.trackers import TrackerConfig, require_package
from tests.unit.observe.test_logger import open_logger, record

SAMPLES = [
    {"prompt": "感冒了怎么办？", "answer": "多喝水，\n多休息。", "finish_reason": "stop"},
    {"prompt": "发热", "answer": "\x1b[31m三十九度", "finish_reason": "length"},
]
OFFLINE = TrackerConfig(mode="offline", project="tests")
installed = {name: importlib.util.find_spec(name) is not None for name in ("wandb", "swanlab")}


def needs(name):
    reason = f"{name} is not installed: make trackers"
    return pytest.mark.skipif(not installed[name], reason=reason)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """They take most of the time, and are another test's."""
    for name in ("write_loss_curve", "write_source_losses"):
        monkeypatch.setattr(logger_module, name, lambda *_: False)


@pytest.fixture
def no_network(monkeypatch):
    """Fails on a connection to another place than this machine's own processes."""
    original = socket.socket.connect

    def connect(self, address):
        assert self.family == socket.AF_UNIX, f"connects to {address}"
        return original(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)


def log_a_run(folder, *, start_step=0, **config):
    with open_logger(folder, start_step=start_step, **config) as log:
        log.track({"model": {"num_layers": 2}})
        for step in (start_step + 1, start_step + 2):
            log.step(record(step, grad_norm=math.inf, sources={"a": (2.0, 1.0)}))
        log.validation(start_step + 2, 2.5, accuracy=0.75)
        log.samples(start_step + 2, SAMPLES)


@pytest.mark.parametrize("name", [pytest.param(n, marks=needs(n)) for n in installed])
def test_ctrl_c_stays_with_the_run(tmp_path, name):
    def note(*_):
        pass

    before, hook = signal.signal(signal.SIGINT, note), sys.excepthook
    try:
        with open_logger(tmp_path, **{name: OFFLINE}) as log:
            log.track({})
            assert signal.getsignal(signal.SIGINT) is note and sys.excepthook is hook
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # as after a first Ctrl-C
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL and sys.excepthook is hook
    finally:
        signal.signal(signal.SIGINT, before)


@needs("wandb")
def test_wandb_offline_keeps_a_run_and_its_id(tmp_path, no_network, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")  # changes nothing
    log_a_run(tmp_path, wandb=OFFLINE)
    log_a_run(tmp_path, wandb=OFFLINE, start_step=2)
    runs = sorted((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    name = (tmp_path / trackers.ID_NAME).read_text().strip()
    assert [path.stem for path in runs] == [f"run-{name}"] * 2, "one run in two parts"
    kept = runs[-1].read_bytes()
    for told in (b"train/loss", b"3.3333333333333335", b"train_sources/a", b"valid/accuracy"):
        assert told in kept, told
    tables = [*runs[-1].parent.glob("files/media/table/*.json")]
    assert json.loads(tables[0].read_text())["data"][0] == [4, *list(SAMPLES[0].values())[:2]]


@needs("swanlab")
def test_swanlab_offline_keeps_a_run(tmp_path, no_network, monkeypatch):
    monkeypatch.setenv("SWANLAB_WEBHOOK", "http://127.0.0.1:9/")  # is not called
    log_a_run(tmp_path, swanlab=OFFLINE)
    (run,) = (tmp_path / "swanlab").glob("run-*")
    texts = [path.read_text() for path in sorted((run / "media").rglob("*.txt"))]
    assert any("感冒了怎么办？\n---\n多喝水，\n多休息。" in text for text in texts)
    kept = b"".join(path.read_bytes() for path in run.glob("*.swanlab"))
    for name in (b"train/loss", b"train_sources/a", b"valid/accuracy"):
        assert name in kept, name


@pytest.mark.parametrize("name", ["wandb", "swanlab"])
def test_a_missing_package_is_named_before_the_run_starts(monkeypatch, name):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    require_package(name, TrackerConfig())
    with pytest.raises(ConfigError, match=f"logging.{name}.mode is offline.*pip install {name}"):
        require_package(name, OFFLINE)


def test_nothing_is_imported_that_is_off(tmp_path):
    code = (
        "import sys; from megatron_chimed.observe.logger import *\n"
        f"with RunLogger(LogConfig(tensorboard=False), {str(tmp_path)!r}, total_steps=1, "
        "start_step=0, flops_per_token=1, num_devices=1, is_writer=True) as log:\n"
        "    log.track({})\n"
        "assert not {'wandb', 'swanlab'} & sys.modules.keys(), 'imported'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


class Failing:
    """A tracker that loses its connection."""

    def __init__(self, *_, **__):
        self.calls = 0

    def write(self, event):
        if event["kind"] == "train":
            raise ConnectionError("no route to host")

    def close(self):
        raise AssertionError("is not called any more")


@pytest.mark.parametrize("when", ["at the start", "on the way"])
def test_a_place_that_fails_ends_no_run_and_is_told_once(tmp_path, capsys, monkeypatch, when):
    def refuse(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(logger_module, "WandbWriter", Failing if when == "on the way" else refuse)
    log_a_run(tmp_path, wandb=OFFLINE, progress="plain", log_interval=100)
    warnings = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    cause = "ConnectionError: no route to host" if when == "on the way" else "OSError: no space"
    assert len(warnings) == 1 and "wandb failed and is disabled until" in warnings[0]
    assert cause in warnings[0] and "Training continues" in warnings[0]
    kinds = [event["kind"] for event in read_metrics(tmp_path / "metrics.jsonl")]
    assert kinds.count("train") == 2 and "valid" in kinds


def test_a_picture_that_fails_ends_no_run(tmp_path, capsys, monkeypatch):
    def refuse(*_):
        raise OSError("no space left")

    monkeypatch.setattr(logger_module, "write_loss_curve", refuse)
    log_a_run(tmp_path)
    assert "loss_curve.png was not drawn (OSError: no space left)" in capsys.readouterr().out


def test_sample_answers_go_to_the_log_a_file_and_tensorboard(tmp_path, capsys):
    options = {"tensorboard": True, "progress": "plain", "sample_prompts": "p.txt"}
    log_a_run(tmp_path, **options)
    log_a_run(tmp_path, **options, start_step=1)
    log_a_run(tmp_path, **options, start_step=3)
    events = read_metrics(tmp_path / "samples.jsonl")
    assert [(e["step"], e["number"]) for e in events] == [(3, 1), (3, 2), (5, 1), (5, 2)]
    assert {k: events[1][k] for k in SAMPLES[1]} == SAMPLES[1]
    out = capsys.readouterr().out
    assert "sample 1 at step 2: 感冒了怎么办？\n    -> 多喝水， 多休息。\n" in out
    assert "    -> \ufffd[31m三十九度 [cut]\n" in out, "an answer steers no terminal"
    accumulator = EventAccumulator(str(tmp_path / "tensorboard"))
    accumulator.Reload()
    texts = accumulator.Tensors("samples/1")
    assert [text.step for text in texts][-1] == 5
    shown = texts[-1].tensor_proto.string_val[0].decode()
    assert shown == "prompt:\n\n    感冒了怎么办？\n\nanswer:\n\n    多喝水，\n    多休息。"


def test_settings_out_of_range_are_refused():
    with pytest.raises(ConfigError, match=r"sample_tokens \(0\) is less than 1"):
        logger_module.LogConfig(sample_tokens=0)
    with pytest.raises(ConfigError, match=r"source_interval \(-1\) is negative"):
        logger_module.LogConfig(source_interval=-1)
    with pytest.raises(ConfigError, match="project of an experiment tracker is empty"):
        TrackerConfig(project="")
