"""Adapters beside frozen weights: what they add, what they start as, what is allocated for them."""

import dataclasses
import math

import pytest
import torch

from megatron_chimed.config.training import TrainConfig
from megatron_chimed.errors import ConfigError
from megatron_chimed.kernels import cross_entropy
from megatron_chimed.model import (
    LoraConfig,
    build_chunks,
    initialize_weights,
    linear,
    weight_shards,
)
from megatron_chimed.planning.memory import plan_memory
from tests.unit.engine.world import MODEL, layout_of, one_rank, settings_of, token_batch
from tests.unit.model.test_init import global_weights

LORA = LoraConfig(rank=4, alpha=8.0)
# In and out of q, k, v, o, gate, up, down.
WIDTHS = ((64, 64), (64, 32), (64, 32), (64, 64), (64, 96), (64, 96), (96, 64))


def model_with(ranks, lora, *, moved=False, precision="fp32"):
    """`MODEL` with adapters, as they start or as after some training."""
    settings = settings_of(ranks, precision=precision)
    (model,) = build_chunks(MODEL, settings=settings, ranks=ranks, lora=lora)
    initialize_weights(model, 5)
    if moved:
        torch.manual_seed(0)
        for shard in weight_shards([model]):
            if shard.key.endswith("lora_B.weight"):
                shard.tensor.normal_(std=0.1)
    return model


@torch.no_grad()
def logits_of(model):
    return model(*token_batch()[:2])[..., : MODEL.vocab_size]


def test_fresh_adapters_change_no_bit():
    with one_rank() as ranks:
        plain, with_adapters = (logits_of(model_with(ranks, lora)) for lora in (None, LORA))
        assert torch.equal(plain, with_adapters)
        moved = logits_of(model_with(ranks, LORA, moved=True))
        assert not torch.allclose(plain, moved, atol=1e-2)


def test_fresh_a_is_uniform_and_its_own_for_each_matrix():
    with one_rank() as ranks:
        weights = {shard.key: shard.tensor for shard in weight_shards([model_with(ranks, LORA)])}
    found = [tensor for key, tensor in weights.items() if key.endswith("lora_A.weight")]
    assert len(found) == 7 * MODEL.num_layers
    for a in found:
        bound = 1 / math.sqrt(a.shape[1])
        assert 0.9 * bound < a.abs().max() <= bound
        assert a.std() == pytest.approx(bound / math.sqrt(3), rel=0.15)
    assert len({tensor.flatten()[0].item() for tensor in found}) == len(found)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_generation_adds_what_training_adds(precision):
    """In inference mode the products are others, whose rows do not depend on each other."""
    with one_rank() as ranks:
        model = model_with(ranks, LORA, moved=True, precision=precision)
        trained = logits_of(model.eval())
        with torch.inference_mode():
            tokens, positions, _ = token_batch()
            generated = model(tokens, positions)[..., : MODEL.vocab_size]
            first_row = model(tokens[:1], positions[:1])[..., : MODEL.vocab_size]
    tolerance = {"fp32": 1e-5, "bf16": 0.05}[precision]
    assert (generated - trained).abs().max() < tolerance
    if precision == "fp32":
        assert torch.equal(first_row, generated[:, :1])


def test_dropout_is_of_training_alone():
    with one_rank() as ranks:
        dropped, plain = (
            model_with(ranks, dataclasses.replace(LORA, dropout=p), moved=True) for p in (0.5, 0.0)
        )
        assert torch.equal(logits_of(dropped.eval()), logits_of(plain))
        assert not torch.allclose(logits_of(dropped.train()), logits_of(plain), atol=1e-2)


def test_adapters_alone_are_trained():
    with one_rank() as ranks:
        lora = dataclasses.replace(LORA, targets=("q_proj", "down_proj"))
        model = model_with(ranks, lora)
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {
        f"layers.{i}.{layer}_lora_{side}.weight"
        for i in range(MODEL.num_layers)
        for layer in ("self_attn.qkv_proj", "mlp.down_proj")
        for side in "AB"
    }


def test_a_frozen_weight_costs_no_product_for_its_gradient(monkeypatch):
    def fail(*tensors):
        raise AssertionError("a frozen weight's gradient was computed")

    with one_rank() as ranks:
        settings = dataclasses.replace(settings_of(ranks), gradient_accumulation_fusion=True)
        config = dataclasses.replace(MODEL, loss_chunk_tokens=7)
        tokens, positions, labels = token_batch()
        for lora in (None, LORA):
            (model,) = build_chunks(config, settings=settings, ranks=ranks, lora=lora)
            initialize_weights(model, 5)
            if lora is not None:
                monkeypatch.setattr(linear, "_weight_gradient", fail)
                monkeypatch.setattr(cross_entropy, "accumulate_weight_gradient", fail)
            model(tokens, positions, labels=labels).sum().backward()
            weights = list(model.parameters())
            assert all((p.grad is not None) == p.requires_grad for p in weights)
            assert sum(p.requires_grad for p in weights) == (8 if lora else 6) * 3 + 3 * (not lora)


@pytest.mark.parametrize(
    ("world_size", "parallel"),
    [
        (2, {"tensor_parallel_size": 2, "sequence_parallel": True}),
        (4, {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}),
    ],
)
def test_adapters_start_the_same_on_every_layout(gloo_pool, world_size, parallel):
    lora = {"lora": LORA}
    whole = global_weights(gloo_pool, **lora)
    split = global_weights(gloo_pool, world_size, **lora, **parallel)
    assert whole.keys() == split.keys()
    assert sum("lora" in key for key in whole) == 2 * 7 * 4
    assert all((whole[key] == split[key]).all() for key in whole)


@pytest.mark.parametrize(("precision", "element", "state"), [("fp32", 4, 8), ("bf16", 2, 12)])
def test_the_memory_plan_knows_what_is_frozen(precision, element, state):
    def plan(lora):
        batch = {"micro_batch_size": 2, "global_batch_size": 2}
        training = TrainConfig(train_steps=1, precision=precision, **batch)
        (found,) = plan_memory(MODEL, layout_of(), training=training, seq_length=24, lora=lora)
        return found

    plain, found = plan(None), plan(LORA)
    trained = MODEL.num_layers * sum(4 * (inner + outer) for inner, outer in WIDTHS)
    assert found.parameters == plain.parameters + trained
    assert found.weights == found.parameters * element
    assert (found.gradients, found.optimizer) == (trained * 4, trained * state)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"rank": -1}, "--lora.rank is -1"),
        ({"alpha": 0.0}, "--lora.alpha is 0.0: set it above 0"),
        ({"dropout": 1.0}, r"--lora.dropout is 1.0: set it in \[0, 1\)"),
        ({"targets": ()}, r"--lora.targets is \[\]: name at least one matrix"),
        ({"targets": ("q_proj", "q_proj")}, "each once"),
    ],
)
def test_settings_out_of_range_are_refused(values, said):
    with pytest.raises(ConfigError, match=said):
        LoraConfig(**values)
