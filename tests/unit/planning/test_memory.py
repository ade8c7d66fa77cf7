"""The memory plan against what a real model allocates and what a real forward pass saves."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from rich.console import Console

from megatron_chimed import engine
from megatron_chimed.config.kernels import KernelConfig
from megatron_chimed.config.presets import ziya_13b
from megatron_chimed.config.training import TrainConfig
from megatron_chimed.kernels import OpPath
from megatron_chimed.model import build_chunks
from megatron_chimed.planning import report
from megatron_chimed.planning.fake_world import fake_rank
from megatron_chimed.planning.memory import plan_memory
from megatron_chimed.planning.report import print_memory
from tests.unit.engine.world import (
    MODEL,
    layout_of,
    one_rank,
    token_batch,
    token_losses,
    whole_model,
)

SHAPE = (2, 24)  # b, s
BF16, FP32 = 2, 4
SMALL = dataclasses.replace(MODEL, num_layers=8)


def plan(
    model=MODEL, *, precision="fp32", num_microbatches=1, shape=SHAPE, backend="auto", **parallel
):
    layout = layout_of(model, seq_length=shape[1], **parallel)
    training = TrainConfig(
        train_steps=1,
        micro_batch_size=shape[0],
        global_batch_size=shape[0] * num_microbatches * layout.data_parallel_size,
        precision=precision,
    )
    return plan_memory(model, layout, training=training, seq_length=shape[1], backend=backend)


def saved_by_a_real_pass(precision, changes):
    """Bytes of all memory that autograd keeps for backward, weights left out."""
    tokens, positions, labels = token_batch(SHAPE)
    kept = []

    def keep(tensor):
        kept.append(tensor.untyped_storage())
        return tensor

    with one_rank() as ranks:
        model = whole_model(ranks, precision=precision, **changes)
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            losses = token_losses(ranks, model(tokens, positions), labels)
        held = {s.data_ptr(): s.nbytes() for s in kept if s.nbytes()}
        assert losses.requires_grad
    return sum(size for place, size in held.items() if place not in weights)


CASES = {
    "none": {},
    "selective": {"recompute": "selective"},
    "full": {"recompute": "full"},
    "reference attention": {"attention_backend": "reference"},
    "hidden dropout": {"hidden_dropout": 0.1},
    "attention dropout": {"attention_dropout": 0.1, "attention_backend": "reference"},
    "selective and dropout": {"hidden_dropout": 0.1, "recompute": "selective"},
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", CASES)
def test_activations_are_what_a_real_pass_saves(name, precision):
    """To the byte, but for an int64 and an fp32 number for each token that the loss keeps."""
    (planned,) = plan(dataclasses.replace(MODEL, **CASES[name]), precision=precision)
    labels = SHAPE[0] * SHAPE[1] * (8 + 4)
    assert planned.activations == saved_by_a_real_pass(precision, CASES[name]) - labels


@pytest.mark.parametrize(
    ("precision", "each_norm", "each_swiglu"),
    [
        # bf16: x in fp32 (4) and the normed x (2) instead of x (2); gate and up (8 f) and silu
        # (4 f) in fp32 instead of gate and up (4 f). fp32: no casts, so the second tensor alone.
        ("bf16", 4 + 2 - 2, 8 + 4 - 4),
        ("fp32", 4, 4),
    ],
)
def test_reference_ops_need_what_they_keep_beside_fused_ones(precision, each_norm, each_swiglu):
    """By hand, in bytes for each token: two norms and a SwiGLU a layer, the last norm, the loss."""
    (fused,), (plain,) = (plan(precision=precision, backend=b) for b in ("auto", "reference"))
    h, f, tokens, num_layers = MODEL.hidden_size, MODEL.ffn_hidden_size, 48, MODEL.num_layers
    norms = (2 * num_layers + 1) * each_norm * h
    logits = 3 * 4 * 384  # three fp32 copies; the vocabulary of 300 is padded to 384
    by_hand = tokens * (norms + num_layers * each_swiglu * f + logits)
    assert plain.activations - fused.activations == by_hand
    assert dataclasses.replace(plain, activations=0) == dataclasses.replace(fused, activations=0)


@pytest.mark.parametrize(
    ("wish", "device", "path", "planned"),
    [
        ("auto", "auto", "reference", "reference"),
        ("auto", "auto", "fused CUDA", "auto"),
        ("auto", "cpu", "reference", "auto"),
        ("reference", "auto", "fused CUDA", "reference"),
    ],
)
def test_the_plan_is_for_the_ops_that_the_gpu_of_this_machine_runs(
    monkeypatch, wish, device, path, planned
):
    monkeypatch.setattr(report, "uses_cuda", lambda: True)
    paths = [OpPath(op="rms_norm", device="cuda", path=path, reason="")]
    monkeypatch.setattr(report, "op_paths", lambda *_: paths)
    config = SimpleNamespace(kernels=KernelConfig(backend=wish), device=device)
    assert report.planned_backend(config) == planned


def test_parameters_of_ziya_13b_at_tp8_pp4():
    """Counted by building megatron-core's own layers elsewhere: first and last stage."""
    model = ziya_13b()
    layout = {"tensor_parallel_size": 8, "pipeline_parallel_size": 4, "sequence_parallel": True}
    plans = plan(model, precision="bf16", shape=(1, 2048), world_size=64, **layout)
    assert [p.parameters for p in plans][::3] == [421_826_560, 421_831_680]
    # Norms are on each of the 8 ranks, all else is split.
    norms = model.hidden_size * (2 * model.num_layers + 1)
    assert 8 * sum(p.parameters for p in plans) == model.num_parameters + 7 * norms
    for stage in plans:
        assert stage.weights == BF16 * stage.parameters
        assert stage.gradients == FP32 * stage.parameters
        assert stage.optimizer == (4 + 4 + 4) * stage.parameters
        assert stage.total == (
            stage.weights + stage.gradients + stage.optimizer + stage.activations
        )


def test_parameters_of_ziya_13b_at_pp2():
    plans = plan(
        ziya_13b(), precision="bf16", shape=(1, 16), world_size=2, pipeline_parallel_size=2
    )
    assert [p.parameters for p in plans] == [6_545_940_480, 6_545_945_600]


def test_recompute_trades_memory():
    sizes = [
        plan(dataclasses.replace(MODEL, recompute=how))[0].activations
        for how in ("none", "selective", "full")
    ]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 3
    assert sizes[1] < 0.7 * sizes[0]


def test_sequence_parallelism_saves_activations_alone():
    pair = {"world_size": 2, "tensor_parallel_size": 2}
    (plain,), (split,) = plan(**pair), plan(**pair, sequence_parallel=True)
    assert split.activations < 0.8 * plain.activations
    assert dataclasses.replace(split, activations=0) == dataclasses.replace(plain, activations=0)


def test_the_distributed_optimizer_shares_moments():
    (plain,) = plan(world_size=4)
    (shared,) = plan(world_size=4, distributed_optimizer=True)
    assert plain.optimizer == 8 * plain.parameters
    assert shared.optimizer == -(-8 * plain.parameters // 4)
    assert (shared.weights, shared.gradients) == (plain.weights, plain.gradients)


@pytest.mark.parametrize(
    ("layout", "num_microbatches", "expected"),
    [
        # 1F1B: as many as there are stages from here to the end, never more than there are.
        ({"pipeline_parallel_size": 4}, 8, [4, 3, 2, 1]),
        ({"pipeline_parallel_size": 4}, 2, [2, 2, 2, 1]),
        ({}, 8, [1]),
        # Interleaved, p=4 v=2: (2 (p - stage - 1) + (v - 1) p + 1) chunk passes of half a model.
        (
            {"pipeline_parallel_size": 4, "virtual_pipeline_parallel_size": 2},
            8,
            [5.5, 4.5, 3.5, 2.5],
        ),
        ({"pipeline_parallel_size": 4, "virtual_pipeline_parallel_size": 2}, 4, [4, 4, 3.5, 2.5]),
    ],
)
def test_micro_batches_in_flight(layout, num_microbatches, expected):
    world_size = layout.get("pipeline_parallel_size", 1)
    plans = plan(SMALL, num_microbatches=num_microbatches, world_size=world_size, **layout)
    assert [p.micro_batches_in_flight for p in plans] == expected
    assert [p.stage for p in plans] == list(range(world_size))


def count_in_flight(rank, world_size, store_path, parallel, num_microbatches):
    """Most micro-batches (of this rank's whole share) between their forward and their backward."""
    from tests.distributed import jobs

    job = jobs.make_job(
        rank,
        world_size,
        store_path,
        parallel=parallel,
        training={"micro_batch_size": 1, "global_batch_size": num_microbatches},
    )
    passes = {"now": 0, "most": 0}

    def forward(module, inputs, output):
        passes["now"] += 1
        passes["most"] = max(passes["most"], passes["now"])

    def backward(module, gradients, more):
        passes["now"] -= 1

    try:
        for chunk in job.chunks:
            norm = next(iter(chunk.layers.values())).input_layernorm
            norm.register_forward_hook(forward)
            norm.register_full_backward_hook(backward)
        batches = next(job.batches(job.datasets.train, consumed=0, prefetch=0))
        engine.run_schedule(job.objective, job.wrapped, batches, ranks=job.ranks)
        return passes["most"] / len(job.chunks)
    finally:
        engine.leave()


@pytest.mark.parametrize(
    "parallel",
    [
        {"pipeline_parallel_size": 2},
        {"pipeline_parallel_size": 4},
        {"pipeline_parallel_size": 2, "virtual_pipeline_parallel_size": 2},
    ],
)
@pytest.mark.parametrize("num_microbatches", [2, 4, 8])
def test_as_many_are_in_flight_as_the_schedule_runs(gloo_pool, parallel, num_microbatches):
    """Counted in the real schedule, one forward and one backward hook for each chunk."""
    stages = parallel["pipeline_parallel_size"]
    measured = gloo_pool.run(count_in_flight, stages, parallel, num_microbatches, init=False)
    plans = plan(SMALL, num_microbatches=num_microbatches, world_size=stages, **parallel)
    assert measured == [p.micro_batches_in_flight for p in plans]


def test_a_fake_world_leaves_nothing_behind():
    assert not dist.is_initialized()
    before = torch.get_rng_state()
    layout = layout_of(ziya_13b(), 1024, tensor_parallel_size=8, pipeline_parallel_size=4)
    with fake_rank(layout, 1023) as ranks:
        assert (ranks.tensor_rank, ranks.pipeline_rank, ranks.data_rank) == (7, 3, 31)
        settings = engine.engine_settings(layout, hidden_size=5120, precision="bf16")
        (chunk,) = build_chunks(ziya_13b(), settings=settings, ranks=ranks)
        assert chunk.layer_indices == range(30, 40)
    assert not dist.is_initialized()
    plan()
    assert not dist.is_initialized()
    assert torch.equal(torch.get_rng_state(), before), "planning moved the random state"
    with one_rank() as ranks:  # a real world works afterwards
        tokens, positions, _ = token_batch()
        assert whole_model(ranks)(tokens, positions).isfinite().any()


def test_a_fake_world_is_left_after_an_error():
    with pytest.raises(ZeroDivisionError), fake_rank(layout_of(), 0):
        raise ZeroDivisionError
    assert not dist.is_initialized()


def test_the_table_has_a_row_for_each_stage(capsys):
    layout = layout_of(SMALL, 4, tensor_parallel_size=2, pipeline_parallel_size=2)
    plans = plan(SMALL, world_size=4, tensor_parallel_size=2, pipeline_parallel_size=2)
    print_memory(plans, layout, Console(width=240))
    shown = capsys.readouterr().out
    assert "--kernels.backend reference plans for a machine without them" in shown
    assert "TP2 x PP2 x DP1, 4 ranks" in shown
    assert "0-3" in shown and "4-7" in shown
    assert f"{plans[0].parameters / 1e6:,.1f}M" in shown
    assert "Not counted" in shown
