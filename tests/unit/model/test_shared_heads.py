"""16 heads on 2 key heads over more ranks than these: neighbours hold the same key and value head.

On real ranks up to 4 they train in `tests/distributed/test_families.py`.
"""

import pytest
import torch
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron_chimed import engine
from megatron_chimed.checkpoint.index import check_tiling
from megatron_chimed.engine import engine_settings
from megatron_chimed.model import ModelConfig, build_chunks, shard_specs
from megatron_chimed.model.attention import AttentionContext
from megatron_chimed.model.recompute import Recomputed
from megatron_chimed.planning.fake_world import fake_rank
from tests.distributed import jobs

MODEL = ModelConfig(
    vocab_size=300,
    hidden_size=64,
    num_layers=1,
    num_attention_heads=16,
    num_key_value_heads=2,
    kv_channels=8,
    qkv_bias=True,
    qk_norm=True,
    ffn_hidden_size=96,
    max_position_embeddings=64,
)


@pytest.mark.parametrize("size", [4, 8])
def test_shards_of_all_ranks_are_the_matrices(size):
    """Shards tile the matrices; those of neighbours are the same."""
    layout = jobs.make_layout(MODEL, {"tensor_parallel_size": size}, size)
    found = {}
    for rank in range(size):
        with fake_rank(layout, rank) as ranks:
            settings = engine_settings(layout, hidden_size=64, precision="fp32")
            chunks = build_chunks(MODEL, settings=settings, ranks=ranks)
            for parameter, specs in shard_specs(chunks).items():
                for spec in specs:
                    region = (spec.offset, (spec.rows, *parameter.shape[1:]))
                    found.setdefault((spec.key, spec.global_shape, spec.copies), []).append(region)
    for (key, shape, copies), regions in found.items():
        is_split_less = ".k_proj." in key or ".v_proj." in key
        is_head_norm = ".q_norm." in key or ".k_norm." in key
        assert copies == (size // 2 if is_split_less else size if is_head_norm else 1), key
        if copies > 1:
            assert all(regions.count(region) == copies for region in set(regions))
            check_tiling(key, shape, set(regions))
    assert found.keys() >= {("model.layers.0.self_attn.k_proj.bias", (16,), size // 2)}


@pytest.mark.parametrize("size", [2, 4, 8])
def test_ranks_that_share_key_heads_add_up_to_one(size):
    """Outputs and gradients of a layer, each rank's in turn: collectives of this world do nothing.

    What they would sum is summed here, so more ranks need no more processes.
    """
    weights: dict[str, torch.Tensor] = {}
    output, gradients = sum_of_ranks(1, weights)
    expected = output, *gradients.values()
    output, found = sum_of_ranks(size, weights)
    assert found.keys() == gradients.keys()
    for ours, theirs in zip((output, *found.values()), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def sum_of_ranks(size, weights):
    """The output of the first layer's attention and its gradients, each the sum of all ranks'.

    Draws weights where there are none yet; a shard that several ranks hold counts for each.
    """
    layout = jobs.make_layout(MODEL, {"tensor_parallel_size": size}, size)
    generator = torch.Generator().manual_seed(5)
    hidden, upstream = torch.randn(2, 12, 2, 64, generator=generator)  # [s, b, h] each
    output, gradients = torch.zeros_like(upstream), {}
    for rank in range(size):
        ranks = engine.join(layout, rank=rank, local_rank=0, store=FakeStore(), backend="fake")
        try:
            settings = engine_settings(layout, hidden_size=64, precision="fp32")
            (chunk,) = build_chunks(MODEL, settings=settings, ranks=ranks)
            cos, sin = chunk.rope(torch.arange(12).expand(2, 12))
            layer = chunk.layers["0"].self_attn
            held = [(p, spec) for p, specs in chunk.shard_specs().items() for spec in specs]
            held = [(p, spec) for p, spec in held if ".self_attn." in spec.key]
            for parameter, spec in held:
                (shard,) = engine.row_shards([spec], parameter)
                if spec.key not in weights:
                    drawn = torch.randn(spec.global_shape, generator=generator)
                    weights[spec.key] = 0.2 * drawn + ("_norm." in spec.key)
                shard.tensor.copy_(weights[spec.key][region_of(shard)])
            partial_sum = layer(hidden, AttentionContext(cos=cos, sin=sin), Recomputed(False))
            partial_sum.backward(upstream)
            output += partial_sum.detach()
            for parameter, spec in held:
                (shard,) = engine.row_shards([spec], parameter.grad)
                whole = gradients.setdefault(spec.key, torch.zeros(spec.global_shape))
                whole[region_of(shard)] += shard.tensor
        finally:
            engine.leave()
    return output, gradients


def region_of(shard):
    sizes = shard.tensor.shape
    return tuple(slice(o, o + n) for o, n in zip(shard.offset, sizes, strict=True))
