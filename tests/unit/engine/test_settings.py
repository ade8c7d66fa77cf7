"""Settings that megatron-core does not check itself, and gets silently wrong."""

import dataclasses

import pytest
import torch

from megatron_chimed import engine
from tests.unit.engine.world import MODEL, layout_of

INTERLEAVED = {"pipeline_parallel_size": 2, "virtual_pipeline_parallel_size": 2}


FOUR_LAYERS = dataclasses.replace(MODEL, num_layers=4)


def settings(*, world_size=1, precision="fp32", **parallel):
    layout = layout_of(FOUR_LAYERS, world_size, **parallel)
    return engine.engine_settings(layout, hidden_size=64, precision=precision)


def test_interleaved_stages_never_batch_their_messages():
    """Two stages that are each other's both neighbours pair batched messages in the wrong order:
    the loss hardly changes and the gradients are wrong."""
    found = settings(world_size=2, **INTERLEAVED)
    assert (found.overlap_p2p_comm, found.batch_p2p_comm) == (True, False)
    assert found.virtual_pipeline_model_parallel_size == 2
    plain = settings(world_size=2, pipeline_parallel_size=2)
    assert not plain.batch_p2p_sync, "the host would wait for the device after each message"
    assert (plain.overlap_p2p_comm, plain.batch_p2p_comm) == (False, True)
    assert plain.virtual_pipeline_model_parallel_size is None


@pytest.mark.parametrize("parallel", [{"pipeline_parallel_size": 2}, INTERLEAVED])
@pytest.mark.parametrize("cuda", [True, False])
def test_sent_activations_are_kept_on_cpu(monkeypatch, parallel, cuda):
    """A gloo send reads its memory after the call returned; freeing it early, as is right on CUDA
    where the stream is in order, would transmit whatever lies there by then."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    found = settings(world_size=2, **parallel)
    assert found.deallocate_pipeline_outputs is cuda
    assert found.use_cpu_initialization is not cuda


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_precision(precision, dtype):
    found = settings(precision=precision)
    assert found.params_dtype is found.pipeline_dtype is dtype
    assert (found.bf16, found.fp16) == (precision == "bf16", precision == "fp16")


def test_losses_are_sums_over_tokens():
    """Else each micro-batch is divided by its own count: another objective with ragged masks."""
    assert settings().calculate_per_token_loss
