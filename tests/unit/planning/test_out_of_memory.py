"""Running out of GPU memory: one message with the plan and what to lower, and no restart."""

import dataclasses

import pytest
import torch

from megatron_chimed.config.parsing import config_of
from megatron_chimed.config.run_config import RunConfig
from megatron_chimed.engine.agreement import Agreement
from megatron_chimed.engine.ranks import peers_may_fail
from megatron_chimed.errors import GpuMemoryError
from megatron_chimed.planning import memory
from megatron_chimed.planning.out_of_memory import explaining_out_of_memory
from tests.unit.engine.world import MODEL

SAID = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.15 GiB of "
    "which 1.20 GiB is free. Including non-PyTorch memory, this process has 77.9 GiB memory in use."
    " If reserved but unallocated memory is large try setting PYTORCH_ALLOC_CONF"
)
SETTINGS = {
    "output_dir": "run",
    "tokenizer": "none",
    "model": dataclasses.asdict(MODEL),
    "data": {"train": "prefix", "seq_length": 16},
    "training": {"train_steps": 1, "micro_batch_size": 2, "global_batch_size": 8},
    "parallel": {"tensor_parallel_size": 2},
}


def config(**changes):
    return config_of({**SETTINGS, **changes}, RunConfig, named="test")


def message_of(run):
    layout = run.plan_layout(8)
    with pytest.raises(GpuMemoryError) as caught, explaining_out_of_memory(run, layout):
        raise torch.OutOfMemoryError(SAID)
    return str(caught.value)


def test_the_message_has_the_figures_of_the_plan(monkeypatch):
    gib = 1 << 30
    fake = memory.RankMemory(
        stage=0, parameters=1, weights=26 * gib, gradients=20 * gib, optimizer=12 * gib,
        activations=8 * gib + gib // 2, micro_batches_in_flight=1,
    )  # fmt: skip
    monkeypatch.setattr(
        "megatron_chimed.planning.out_of_memory.plan_memory", lambda *_, **__: [fake]
    )
    said = message_of(config())
    assert said.startswith(
        "a GPU is out of memory. The plan for a rank of stage 0, with fused kernels, is 66.5 GiB "
        "(weights 26.0, gradients 20.0, optimizer 12.0, saved activations 8.5), without fragmenta"
    )
    assert said.endswith(
        "torch said: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of "
        "79.15 GiB of which 1.20 GiB is free."
    )


def test_the_error_of_another_rank_is_explained_as_well():
    run = config()
    layout = run.plan_layout(8)
    with pytest.raises(GpuMemoryError) as caught, explaining_out_of_memory(run, layout):
        raise GpuMemoryError(f"rank 3: {SAID}")
    assert "The plan for a rank of stage 0" in str(caught.value)


def test_it_names_what_can_still_be_lowered():
    said = message_of(config())
    for setting in (
        "--parallel.distributed_optimizer true",
        "--training.micro_batch_size below 2",
        "--parallel.sequence_parallel true",
        "--model.recompute selective",
        "--model.loss_chunk_tokens 1024",
        "--lora.rank 16",
        "--data.seq_length below 16",
    ):
        assert setting in said
    done = message_of(
        config(
            model={**SETTINGS["model"], "recompute": "full", "loss_chunk_tokens": 4},
            training={"train_steps": 1, "global_batch_size": 8},
            parallel={"distributed_optimizer": True, "pipeline_parallel_size": 1},
        )
    )
    for setting in ("distributed_optimizer", "micro_batch_size", "recompute", "loss_chunk"):
        assert setting not in done
    assert "--parallel.tensor_parallel_size above 1" in done


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="^other$"):
        with explaining_out_of_memory(config(), config().plan_layout(8)):
            raise RuntimeError("other")


def test_it_is_no_lost_peer_and_no_damaged_checkpoint():
    nccl = torch.distributed.DistBackendError("NCCL error: Cuda failure 2 'out of memory'")
    with pytest.raises(torch.distributed.DistBackendError), peers_may_fail("training step 1"):
        raise nccl

    def allocate():
        raise torch.OutOfMemoryError(SAID)

    with pytest.raises(torch.OutOfMemoryError):
        Agreement().on_all_ranks(allocate)  # alone: as it was raised
