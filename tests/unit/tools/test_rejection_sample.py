"""Rejection sampling on a fresh clone: what a dry run says before there is any model."""

import pytest
import yaml

from megatron_chimed.config.parsing import ConfigParser
from megatron_chimed.errors import ConfigError
from megatron_chimed.generation.workers import inference_setting
from megatron_chimed.rejection.config import RejectionConfig
from tools import rejection_sample


def test_a_dry_run_names_all_that_is_missing(tmp_path, capsys):
    there = tmp_path / "prompts.jsonl"
    there.write_text('{"prompt": "问"}\n')
    config = {
        "output_dir": str(tmp_path / "run"),
        "policy": "gone/sft",
        "reward_model": "gone/judge",
        "prompts": {"train": [str(tmp_path / "*.jsonl")], "held_out": ["gone/held.jsonl"]},
        "training": {"config": ["gone/base.yaml"], "mix": [{"prefix": "gone/mix"}]},
    }
    path = tmp_path / "rejection.yaml"
    path.write_text(yaml.safe_dump(config))
    assert rejection_sample.main(["--config", str(path), "--dry-run"]) == 78
    out, err = capsys.readouterr()
    assert out == "" and "but 5 inputs are missing" in err
    for line in (
        "policy gone/sft: train it with `stage: sft`",
        "reward_model gone/judge: train it with `stage: reward`",
        "prompts.held_out gone/held.jsonl: ",
        "training.config gone/base.yaml: ",
        "training.mix gone/mix: make it from your files with: tools/preprocess_data.py",
    ):
        assert f"\n  - {line}" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("parallel.tensor_parallel_size", "inference.tensor_parallel_size"),
        ("parallel.timeout_seconds", "inference.timeout_seconds"),
        ("training.precision", "inference.precision"),
        ("parallel.sequence_parallel", None),
        ("optim.lr", None),
    ],
)
def test_settings_of_its_models_have_its_names(key, name):
    assert inference_setting(key) == name


def test_a_key_that_it_does_not_have_is_refused(tmp_path):
    path = tmp_path / "rejection.yaml"
    path.write_text("output_dir: o\npolicy: p\nreward_model: r\nprompts: {train: [q]}\n")
    parser = ConfigParser(RejectionConfig, "tools/rejection_sample.py")
    with pytest.raises(ConfigError, match="^--optim.lr is unknown. See `tools/rejection_sample.py"):
        parser.parse_args(["--config", str(path), "--optim.lr", "1e-4"])
