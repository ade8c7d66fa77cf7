"""Fresh weights: the same for every layout, of the right spread, zero where there is padding."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.distributed as dist

from megatron_chimed import engine
from megatron_chimed.model import build_chunks, initialize_weights, shard_specs, weight_shards
from tests.distributed.jobs import assemble
from tests.unit.engine.world import MODEL, layout_of, one_rank, settings_of, whole_model

# Four layers: two chunks on each of two stages. 300 ids are padded to 384, 192 on each of two.
SMALL = dataclasses.replace(MODEL, num_layers=4)


def shards_of(chunks):
    return [
        (shard.key, shard.global_shape, shard.offset, shard.tensor.float().numpy().copy())
        for shard in weight_shards(chunks)
    ]


def built(rank, world_size, store_path, parallel, precision, seed, lora):
    """This rank's shards, and whether all that belongs to no shard is zero."""
    layout = layout_of(SMALL, world_size, **parallel)
    store = dist.FileStore(store_path, world_size)
    ranks = engine.join(layout, rank=rank, local_rank=rank, store=store)
    try:
        settings = settings_of(ranks, precision=precision)
        chunks = build_chunks(SMALL, settings=settings, ranks=ranks, lora=lora)
        for chunk in chunks:
            initialize_weights(chunk, seed)
        is_zero = not any(
            parameter[sum(spec.rows for spec in held) :].any()
            for parameter, held in shard_specs(chunks).items()
        )
        return shards_of(chunks), is_zero
    finally:
        engine.leave()


def global_weights(pool, world_size=1, precision="fp32", seed=3, lora=None, **parallel):
    results = pool.run(built, world_size, parallel, precision, seed, lora, init=False)
    assert all(is_zero for _, is_zero in results)
    return assemble([shards for shards, _ in results])


LAYOUTS = {
    "TP2": (2, {"tensor_parallel_size": 2}),
    "TP2+SP": (2, {"tensor_parallel_size": 2, "sequence_parallel": True}),
    "TP4": (4, {"tensor_parallel_size": 4}),
    "PP2": (2, {"pipeline_parallel_size": 2}),
    "PP2 uneven": (2, {"pipeline_parallel_size": 2, "pipeline_split": (1, 3)}),
    "PP2xVPP2": (2, {"pipeline_parallel_size": 2, "virtual_pipeline_parallel_size": 2}),
    "TP2xPP2": (4, {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}),
    "DP2": (2, {}),
}


@pytest.fixture(scope="module")
def one_rank_weights(gloo_pool):
    return {name: global_weights(gloo_pool, precision=name) for name in ("fp32", "bf16")}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_has_the_same_weights(gloo_pool, one_rank_weights, name, precision):
    world_size, parallel = LAYOUTS[name]
    found = global_weights(gloo_pool, world_size, precision, **parallel)
    expected = one_rank_weights[precision]
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert np.array_equal(found[key], tensor), key


def test_names_and_shapes_are_those_of_transformers(one_rank_weights):
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        reference = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=SMALL.vocab_size,
                hidden_size=SMALL.hidden_size,
                num_hidden_layers=SMALL.num_layers,
                num_attention_heads=SMALL.num_attention_heads,
                num_key_value_heads=SMALL.num_key_value_heads,
                intermediate_size=SMALL.ffn_hidden_size,
                tie_word_embeddings=False,
            )
        )
    expected = {name: tuple(tensor.shape) for name, tensor in reference.state_dict().items()}
    assert {key: tensor.shape for key, tensor in one_rank_weights["fp32"].items()} == expected


def test_the_spread_of_each_tensor(one_rank_weights):
    std = SMALL.init_std
    into_residual = std / math.sqrt(2 * SMALL.num_layers)
    seen = set()
    for key, tensor in one_rank_weights["fp32"].items():
        if tensor.ndim == 1:
            assert (tensor == 1).all(), key
            seen.add("norm")
            continue
        scaled = key.endswith(("o_proj.weight", "down_proj.weight"))
        expected = into_residual if scaled else std
        seen.add(expected)
        # The sample's own spread is within 4 standard errors.
        assert tensor.std() == pytest.approx(expected, rel=4 / math.sqrt(2 * tensor.size)), key
        assert abs(tensor.mean()) < 4 * expected / math.sqrt(tensor.size), key
        assert abs(tensor).max() > 2 * expected  # normal, not uniform
    assert seen == {"norm", std, into_residual}


def test_no_two_tensors_are_alike(one_rank_weights):
    starts = [tuple(t.flatten()[:8]) for t in one_rank_weights["fp32"].values() if t.ndim > 1]
    assert len(set(starts)) == len(starts)


def test_the_seed_decides():
    with one_rank() as ranks:
        first, again, other = (
            {key: values for key, _, _, values in shards_of([whole_model(ranks, seed=seed)])}
            for seed in (1, 1, 2)
        )
    for key, tensor in first.items():
        assert np.array_equal(tensor, again[key])
        assert np.array_equal(tensor, other[key]) == (tensor.ndim == 1)


def test_drawing_weights_leaves_the_random_streams_alone():
    with one_rank() as ranks:
        model = whole_model(ranks)
        state = engine.rng_state()
        initialize_weights(model, 9)
        assert engine.rng_state() == state
