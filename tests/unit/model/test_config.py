"""Sizes of a model: what is refused, the padded vocabulary, the number of weights."""

import pytest
import torch

from megatron_chimed.config import presets
from megatron_chimed.errors import ConfigError
from megatron_chimed.model import ModelConfig, weight_shards
from tests.unit.engine.world import MODEL, one_rank, whole_model


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vocab_size": 0}, "--model.vocab_size is 0: it must be at least 1"),
        ({"hidden_size": -8}, "--model.hidden_size is -8"),
        ({"num_layers": 0}, "--model.num_layers is 0"),
        ({"num_attention_heads": 0}, "--model.num_attention_heads is 0"),
        ({"ffn_hidden_size": 0}, "--model.ffn_hidden_size is 0"),
        ({"max_position_embeddings": 0}, "--model.max_position_embeddings is 0"),
        ({"rms_norm_eps": -1e-6}, "--model.rms_norm_eps is -1e-06"),
        ({"rope_theta": 0.0}, "--model.rope_theta is 0.0"),
        ({"hidden_size": 100, "num_attention_heads": 8}, "Set --model.hidden_size to a multiple"),
        ({"hidden_size": 24, "num_attention_heads": 8}, "a multiple of 16"),
        ({"num_key_value_heads": 3}, "num_key_value_heads (3)"),
        ({"num_key_value_heads": 0}, "--model.num_key_value_heads is 0: it must be at least 1"),
        ({"num_key_value_heads": 80}, "num_attention_heads (40) is not a multiple"),
        ({"attention_dropout": 1.0}, "--model.attention_dropout is 1.0: set it in [0, 1)"),
        ({"hidden_dropout": -0.1}, "--model.hidden_dropout is -0.1"),
        ({"rope_scaling_factor": 0.5}, "--model.rope_scaling_factor is 0.5"),
        ({"hidden_size": "64"}, "--model.hidden_size is '64': it must be a whole number"),
        ({"num_layers": 10_000_000}, "--model.num_layers is 10000000: no model is as large"),
        ({"hidden_size": 2**40}, "the limit here is 1048576"),
        ({"num_layers": 2.0}, "--model.num_layers is 2.0: it must"),
        ({"rms_norm_eps": "1e-5"}, "--model.rms_norm_eps is '1e-5': it must be a number"),
        ({"rms_norm_eps": float("inf")}, "--model.rms_norm_eps is inf"),
        ({"recompute": "all"}, "it must be one of none, selective, full"),
        ({"rope_scaling_factor": float("nan")}, "--model.rope_scaling_factor is nan"),
        ({"kv_channels": 7}, "--model.kv_channels is 7: RoPE turns pairs"),
        ({"kv_channels": 0}, "--model.kv_channels is 0: it must be at least 1"),
        ({"rope_scaling": "ntk"}, "it must be one of linear, llama3, yarn"),
        ({"rope_scaling": "yarn"}, "Set --model.rope_original_max_positions"),
        ({"rope_low_frequency_factor": 4.0}, "--model.rope_high_frequency_factor is 4.0"),
        ({"rope_beta_slow": 0.0}, "--model.rope_beta_slow is 0.0"),
        ({"loss_chunk_tokens": -1}, "--model.loss_chunk_tokens is -1"),
    ],
)
def test_a_wrong_size_is_named(fields, message):
    with pytest.raises(ConfigError) as caught:
        ModelConfig(**fields)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("vocab_size", "tensor_parallel_size", "padded"),
    [
        # Ziya and its true vocabulary share one padded size at every usual TP (308 x 128).
        *[(size, tp, 39424) for size in (39424, 39410) for tp in (1, 2, 4, 8)],
        (32000, 8, 32000),
        (32001, 8, 32128),
        (1, 1, 128),
        (128, 1, 128),
        (129, 2, 256),
        (1000, 3, 1152),
        (1000, 5, 1280),
        (1000, 256, 1024),
    ],
)
def test_padded_vocabulary(vocab_size, tensor_parallel_size, padded):
    config = ModelConfig(vocab_size=vocab_size)
    assert config.padded_vocab_size(tensor_parallel_size) == padded
    assert padded % tensor_parallel_size == 0


@pytest.mark.parametrize(
    ("preset", "count"),
    [
        (presets.llama2_13b(), 13_015_864_320),
        (presets.ziya2_13b(), 13_091_742_720),
        (presets.ziya_13b(), 13_091_886_080),
        (presets.chimed_gpt(), 13_091_886_080),
        (presets.llama2_7b(), 6_738_415_616),
    ],
)
def test_number_of_parameters_is_the_published_one(preset, count):
    assert preset.num_parameters == count


@pytest.mark.parametrize(
    "changes",
    [
        {"num_key_value_heads": 8},
        {},
        {"num_key_value_heads": 1},
        {"kv_channels": 16, "qkv_bias": True},
        {"kv_channels": 4, "qk_norm": True, "tie_word_embeddings": True},
        {"qkv_bias": True, "tie_word_embeddings": True, "head": "score"},
    ],
)
def test_number_of_parameters_is_that_of_a_built_model(changes):
    with one_rank() as ranks:
        model = whole_model(ranks, **changes)
        config = model.model_config
        padding = MODEL.padded_vocab_size(1) - MODEL.vocab_size
        padded = 1 if config.has_tied_head or config.head == "score" else 2
        held = sum(p.numel() for p in model.parameters()) - padded * padding * MODEL.hidden_size
        assert held == config.num_parameters


def test_fresh_biases_are_zero_and_norms_of_heads_one():
    with one_rank() as ranks:
        model = whole_model(ranks, qkv_bias=True, qk_norm=True)
        weights = {shard.key: shard.tensor for shard in weight_shards([model])}
    biases = [tensor for key, tensor in weights.items() if key.endswith("_proj.bias")]
    norms = [tensor for key, tensor in weights.items() if key.endswith(("q_norm.weight",))]
    assert len(biases) == 3 * MODEL.num_layers and not any(map(torch.any, biases))
    assert len(norms) == MODEL.num_layers and all((norm == 1).all() for norm in norms)
