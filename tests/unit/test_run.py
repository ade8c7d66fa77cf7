"""A training run takes its device first, and a dry run takes none."""

import dataclasses

import pytest

from megatron_chimed import run
from megatron_chimed.config.parsing import config_of
from megatron_chimed.config.run_config import RunConfig
from megatron_chimed.errors import ConfigError
from tests.unit.engine.world import MODEL

SETTINGS = {
    "output_dir": "run",
    "tokenizer": "none",
    "model": dataclasses.asdict(MODEL),
    "data": {"train": "no/prefix", "seq_length": 16},
    "training": {"train_steps": 1, "deterministic": True},
}


def config(**changes):
    return config_of({**SETTINGS, **changes}, RunConfig, named="test")


@pytest.fixture
def asked(monkeypatch):
    """What `use_device` was asked for; it refuses."""
    calls = []

    def refuse(wish, **about):
        calls.append((wish, about))
        raise ConfigError("no device")

    monkeypatch.setattr(run, "use_device", refuse)
    return calls


@pytest.mark.parametrize("device", ["cuda", "cpu", None])
def test_a_run_takes_its_device_before_anything_else(asked, device):
    changes = {"device": device} if device else {}  # a configuration of before loads as `auto`
    with pytest.raises(ConfigError, match="^no device$"):
        run.run_training(config(**changes), rank=0, world_size=1, local_rank=3)
    parameters = MODEL.num_parameters
    about = {"local_rank": 3, "num_parameters": parameters, "deterministic": True}
    assert asked == [(device or "auto", about)]


def test_a_dry_run_plans_for_cuda_without_one(asked, capsys):
    with pytest.raises(ConfigError, match="planned as above, but 2 inputs are missing"):
        run.plan_training(config(device="cuda"), world_size=1)
    assert not asked
    assert "memory of each rank" in capsys.readouterr().out


def test_another_device_is_no_setting():
    with pytest.raises(ConfigError, match="device"):
        config(device="tpu")


def test_the_clusters_examples_ask_for_cuda_and_the_quickstart_does_not():
    root = run.Path(__file__).resolve().parents[2] / "examples"
    for name in ("base.yaml", "rejection.yaml"):
        for example in ("ziya_13b", "qwen", "llama3"):
            assert "\ndevice: cuda" in (root / example / name).read_text("utf-8")
    for path in (root / "quickstart").glob("*.yaml"):
        assert "device:" not in path.read_text("utf-8")
