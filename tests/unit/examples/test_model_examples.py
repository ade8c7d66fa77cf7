"""The examples of other models: every layout fits its preset, and every stage can be planned."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from megatron_chimed.config.parsing import ConfigParser
from megatron_chimed.config.presets import PRESETS, preset_defaults
from megatron_chimed.config.run_config import RunConfig
from megatron_chimed.engine import check_batch
from megatron_chimed.generation import plan_session
from megatron_chimed.planning.memory import plan_memory
from megatron_chimed.rejection.config import RejectionConfig
from megatron_chimed.rejection.round_config import round_run_config
from tests.tiers import full_but

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
STAGES = ("pretrain", "sft", "reward", "dpo")
LAYOUTS = {
    **{name: f"qwen/layouts/{name}" for name in PRESETS if name.startswith("qwen")},
    "llama3_8b": "llama3/layouts",
    "llama3_1_8b": "llama3/layouts",
}


def planned(preset, stage, size):
    """The configuration that train.sh starts, and its checked layout."""
    folder = EXAMPLES / LAYOUTS[preset].partition("/")[0]
    files = (folder / "base.yaml", EXAMPLES / LAYOUTS[preset] / f"{size}.yaml")
    words = [
        word for file in (*files, folder / f"{stage}.yaml") for word in ("--config", str(file))
    ]
    parser = ConfigParser(RunConfig, "train")
    config = parser.config(parser.parse_args(words), preset_defaults(preset))
    return config, config.plan_layout(size)


@pytest.mark.parametrize("preset", LAYOUTS)
@pytest.mark.parametrize("size", [8, 64])
def test_every_stage_fits_every_layout(preset, size):
    for stage in STAGES:
        config, layout = planned(preset, stage, size)
        assert config.device == "cuda" and config.stage == stage
        check_batch(
            layout,
            micro_batch_size=config.training.micro_batch_size,
            global_batch_size=config.training.global_batch_size,
        )


@pytest.mark.parametrize("preset", LAYOUTS)
@pytest.mark.parametrize("size", [8, 64])
def test_rounds_of_rejection_sampling_fit_every_layout(preset, size):
    """With the layout that train.sh gives them, and files that name what train.sh makes."""
    folder, layouts = EXAMPLES / LAYOUTS[preset].partition("/")[0], EXAMPLES / LAYOUTS[preset]
    files = [str(folder / "base.yaml"), str(layouts / f"{size}.yaml")]
    parser = ConfigParser(RejectionConfig, "rejection_sample")
    words = ["--config", str(folder / "rejection.yaml")]
    words += ["--training.config", f"[{', '.join(files)}]"]
    config = parser.config(parser.parse_args(words))
    assert config.device == "cuda"
    default = {"qwen": "qwen2_5_7b", "llama3": "llama3_1_8b"}[folder.name]
    assert config.policy == f"runs/{default}_sft"
    assert config.reward_model == f"runs/{default}_reward"
    model = PRESETS[preset]()
    plan_session(config.inference.parallel(), model, size)
    inputs = SimpleNamespace(model=model, policy=Path("policy"))
    run = round_run_config(config, inputs, load="policy", train="data", output="round")
    check_batch(
        run.plan_layout(size),
        micro_batch_size=run.training.micro_batch_size,
        global_batch_size=run.training.global_batch_size,
    )


GIB = 1 << 30
LARGE = ("qwen2_5_32b", 8)
CASES = [(preset, size) for preset in LAYOUTS for size in (8, 64)]


@pytest.mark.parametrize(("preset", "size"), full_but([("qwen3_8b", 8), LARGE], CASES))
def test_a_layout_fits_gpus_of_80_gb(preset, size):
    """With a tenth left free; 32B on 8 GPUs keeps Adam's state in host memory, as its file says."""
    config, layout = planned(preset, "pretrain", size)
    plans = plan_memory(
        config.model, layout, training=config.training, seq_length=config.data.seq_length
    )
    if (preset, size) == LARGE:
        assert max(plan.total for plan in plans) > 72 * GIB
        plans = [plan.with_host_optimizer() for plan in plans]
    print(preset, size, [f"{plan.total / GIB:.1f}" for plan in plans])
    assert max(plan.total for plan in plans) < 72 * GIB


def test_a_chunked_loss_keeps_no_logits_in_the_plan():
    config, layout = planned("qwen3_8b", "sft", 8)
    assert config.model.chunk_tokens == 1024
