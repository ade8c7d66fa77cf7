"""Running out of GPU memory while a checkpoint answers or scores: what to lower, by command."""

import json

import pytest
import torch
import torch.distributed as dist

from megatron_chimed.config.inference import InferenceConfig
from megatron_chimed.engine import ParallelConfig, plan_layout
from megatron_chimed.errors import GpuMemoryError
from megatron_chimed.generation import memory_errors, open_session
from megatron_chimed.generation.workers import Workers
from tests.unit.generation import toy
from tests.unit.tools import generating

SAID = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.15 GiB of "
    "which 1.20 GiB is free. Including non-PyTorch memory, this process has 77.9 GiB memory in use."
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return toy.save_reference(tmp_path_factory.mktemp("reference"))


def exhaust(*_, **__):
    raise torch.OutOfMemoryError(SAID)


@pytest.mark.parametrize(
    "raised", [torch.OutOfMemoryError(SAID), GpuMemoryError(f"rank 3: {SAID}")]
)
def test_a_session_says_what_to_lower(checkpoint, raised):
    with pytest.raises(GpuMemoryError) as caught:
        with open_session(checkpoint, ParallelConfig(), world=(0, 1, 0)):
            raise raised
    said = str(caught.value)
    assert said.startswith(
        "a GPU is out of memory. The weights of a rank take about 0.0 GiB. Lower"
    )
    for setting in (
        "--max-batch, --max-new-tokens or the longest prompt",
        "--precision bf16",
        "--parallel.tensor_parallel_size above 1",
    ):
        assert setting in said
    assert said.endswith("which 1.20 GiB is free.")
    assert "micro_batch_size" not in said and "recompute" not in said
    assert not dist.is_initialized()


def test_it_gives_the_figures_of_the_gpu_and_the_advice_for_scoring(monkeypatch):
    monkeypatch.setattr(memory_errors, "uses_cuda", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1 << 30, 80 << 30))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 78 << 30)
    config = toy.model_config()
    layout = plan_layout(
        ParallelConfig(tensor_parallel_size=2), world_size=2, sizes=config.sizes(128)
    )
    explained = memory_errors.explaining_inference_memory(config, layout, "score", torch.bfloat16)
    with pytest.raises(GpuMemoryError) as caught, explained:
        exhaust()
    said = str(caught.value)
    assert (
        "this rank held up to 78.0 of its GPU's 80.0 GiB, and 1.0 GiB are free. Lower --batch-"
        in (said)
    )
    assert "--batch-tokens or the longest answer, or spread the model over more GPUs" in said
    assert "--parallel.tensor_parallel_size above 2" in said
    assert "--max-batch" not in said and "bf16" not in said


def test_rejection_sampling_names_its_own_settings(checkpoint):
    own = {"--max-new-tokens": "--candidates.max_new_tokens"}
    workers = Workers(rank=0, size=1, local_rank=0, inference=InferenceConfig(), settings=own)
    with pytest.raises(GpuMemoryError) as caught, workers.session(checkpoint):
        exhaust()
    said = str(caught.value)
    for setting in (
        "--inference.max_batch",
        "--candidates.max_new_tokens",
        "--inference.batch_tokens",
        "--inference.precision bf16",
        "--inference.tensor_parallel_size above 1",
    ):
        assert setting in said
    assert "--max-batch" not in said and "--parallel." not in said


def test_the_command_ends_with_its_exit_code(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("megatron_chimed.generation.decoder.Decoder.step", exhaust)
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    prompts.write_text(json.dumps({"prompt": "fever"}) + "\n")
    arguments = ("--checkpoint", checkpoint, "--prompts", prompts, "--output", output)
    assert generating.run(*arguments, "--max-new-tokens", 4) == 71
    said = capsys.readouterr().err
    assert "GpuMemoryError: a GPU is out of memory" in said and "--max-batch" in said
    assert "Traceback" not in said and not output.exists()


def test_other_errors_pass(checkpoint):
    with pytest.raises(RuntimeError, match="^other$"):
        with open_session(checkpoint, ParallelConfig(), world=(0, 1, 0)):
            raise RuntimeError("other")
