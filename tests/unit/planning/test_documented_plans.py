"""The plans of 13B that docs/gpu.md and docs/memory.md state."""

import re
from pathlib import Path

import pytest

from megatron_chimed.planning.memory import plan_memory
from tests.rehearsal.cases import Case, parse

ROOT = Path(__file__).resolve().parents[3]
GIB = 2**30
FOLDER = ROOT / "examples" / "ziya_13b"
TWO_GPUS = {"parallel.tensor_parallel_size": "2", "parallel.sequence_parallel": "true"}


def plans(world_size, *names, backend="auto", **settings):
    """Of each stage, as `--dry-run` makes them."""
    flags = ["--preset", "ziya2_13b", "--model.vocab_size", "39424"]
    flags += [part for name in names for part in ("--config", str(FOLDER / f"{name}.yaml"))]
    flags += [part for key, value in settings.items() for part in (f"--{key}", value)]
    config = parse(Case(name="", flags=tuple(flags)))
    found = plan_memory(
        config.model,
        config.plan_layout(world_size),
        training=config.training,
        seq_length=config.data.seq_length,
        lora=config.lora,
        backend=backend,
    )
    return [plan.with_host_optimizer() if config.optim.offload else plan for plan in found]


def in_docs(page, pattern):
    """The groups of a pattern in both languages, which must be equal."""
    texts = [(ROOT / folder / page).read_text("utf-8") for folder in ("docs", "docs/zh")]
    (found,) = {re.search(pattern, " ".join(text.split())).groups() for text in texts}
    return [float(number) for number in found]


@pytest.mark.full
def test_reference_ops_on_80_gpus():
    names, settings = ("base", "layouts/80", "pretrain"), {"model.recompute": "none"}
    totals = [
        round(plans(80, *names, backend=backend, **settings)[0].total / GIB, 1)
        for backend in ("reference", "auto")
    ]
    assert totals == in_docs("gpu.md", r"(89\.\d) GiB.{1,16}(66\.\d)")


@pytest.mark.full
def test_sft_on_two_gpus():
    changes = ({}, {"optim.offload": "true"}, {"optim.offload": "true", "model.recompute": "full"})
    totals = [
        round(max(p.total for p in plans(2, "base", "sft", **TWO_GPUS, **change)) / GIB, 1)
        for change in changes
    ]
    row = r"(118\.\d) GiB \| (\d+\.\d) GiB \| (\d+\.\d) GiB"
    assert totals == in_docs("memory.md", row)
