"""Named models. Numbers are those of the published configurations.

A preset is a model and, where one was found by measuring, a recipe: defaults for other sections.
"""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from megatron_chimed.config.model import ModelConfig


def ziya_13b() -> ModelConfig:
    """Ziya-LLaMA-13B-v1: LLaMA-13B with a vocabulary of 39,410, stored padded to 39,424."""
    return ModelConfig(vocab_size=39424, max_position_embeddings=2048)


def ziya2_13b() -> ModelConfig:
    """Ziya2-13B-Base: LLaMA-2-13B geometry, 4,096 positions, the true vocabulary."""
    return ModelConfig(vocab_size=39410, max_position_embeddings=4096)


def chimed_gpt() -> ModelConfig:
    """ChiMed-GPT-1.0: Ziya2's geometry with the padded vocabulary."""
    return ModelConfig(vocab_size=39424, max_position_embeddings=4096)


def llama2_7b() -> ModelConfig:
    """LLaMA-2-7B."""
    return ModelConfig(
        vocab_size=32000,
        hidden_size=4096,
        num_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        ffn_hidden_size=11008,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
    )


def llama2_13b() -> ModelConfig:
    """LLaMA-2-13B."""
    return ModelConfig(vocab_size=32000, max_position_embeddings=4096, rms_norm_eps=1e-5)


def llama3_8b() -> ModelConfig:
    """Meta-Llama-3-8B: 8,192 positions."""
    return ModelConfig(
        vocab_size=128256,
        hidden_size=4096,
        num_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        ffn_hidden_size=14336,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_theta=500000.0,
    )


def llama3_1_8b() -> ModelConfig:
    """Llama-3.1-8B: Llama 3's sizes, for 131,072 positions by scaled frequencies."""
    return dataclasses.replace(
        llama3_8b(),
        max_position_embeddings=131072,
        rope_scaling="llama3",
        rope_scaling_factor=8.0,
        rope_original_max_positions=8192,
    )


def qwen2_5_7b() -> ModelConfig:
    """Qwen2.5-7B, the base model."""
    return ModelConfig(
        vocab_size=152064,
        hidden_size=3584,
        num_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        qkv_bias=True,
        ffn_hidden_size=18944,
        max_position_embeddings=131072,
        rope_theta=1e6,
    )


def qwen2_5_14b() -> ModelConfig:
    """Qwen2.5-14B, the base model; Instruct has rms_norm_eps 1e-6."""
    return ModelConfig(
        vocab_size=152064,
        num_layers=48,
        num_key_value_heads=8,
        qkv_bias=True,
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        rope_theta=1e6,
    )


def qwen2_5_32b() -> ModelConfig:
    """Qwen2.5-32B, the base model; Instruct has rms_norm_eps 1e-6."""
    return dataclasses.replace(qwen2_5_14b(), num_layers=64, ffn_hidden_size=27648)


def qwen3_8b() -> ModelConfig:
    """Qwen3-8B."""
    return ModelConfig(
        vocab_size=151936,
        hidden_size=4096,
        num_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        kv_channels=128,
        qk_norm=True,
        ffn_hidden_size=12288,
        max_position_embeddings=40960,
        rope_theta=1e6,
    )


def qwen3_14b() -> ModelConfig:
    """Qwen3-14B."""
    return dataclasses.replace(
        qwen3_8b(),
        hidden_size=5120,
        num_layers=40,
        num_attention_heads=40,
        ffn_hidden_size=17408,
    )


def tiny() -> ModelConfig:
    """2.4 M parameters besides those of the vocabulary: trains on a laptop CPU in minutes."""
    return ModelConfig(
        hidden_size=192,
        num_layers=6,
        num_attention_heads=6,
        num_key_value_heads=6,
        ffn_hidden_size=448,
        max_position_embeddings=512,
    )


PRESETS: Mapping[str, Callable[[], ModelConfig]] = MappingProxyType(
    {
        preset.__name__: preset
        for preset in (
            ziya_13b,
            ziya2_13b,
            chimed_gpt,
            llama2_7b,
            llama2_13b,
            llama3_8b,
            llama3_1_8b,
            qwen2_5_7b,
            qwen2_5_14b,
            qwen2_5_32b,
            qwen3_8b,
            qwen3_14b,
            tiny,
        )
    }
)

_RECIPES: Mapping[str, Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "tiny": {
            "data": {"seq_length": 256},
            "optim": {"lr": 2e-3, "warmup_fraction": 0.05},
            "training": {"precision": "fp32", "micro_batch_size": 4, "global_batch_size": 8},
        }
    }
)


def preset_defaults(name: str) -> dict[str, Any]:
    """A preset's settings by dotted key of a run's configuration; files and flags override them."""
    sections = {"model": dataclasses.asdict(PRESETS[name]()), **_RECIPES.get(name, {})}
    return {f"{s}.{key}": value for s, values in sections.items() for key, value in values.items()}
