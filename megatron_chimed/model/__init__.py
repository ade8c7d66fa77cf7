"""The decoder, on megatron-core's parallel layers: `transformer`, then `layer`, `attention`."""

from megatron_chimed.config.lora import LoraConfig
from megatron_chimed.config.model import ModelConfig
from megatron_chimed.model.attention import describe_attention
from megatron_chimed.model.build import build_chunks, shard_specs, weight_shards
from megatron_chimed.model.init import initialize_weights
from megatron_chimed.model.kv_cache import Decode, DecodeGroup, KVCache, Prefill
from megatron_chimed.model.lora import count_adapters, is_adapter
from megatron_chimed.model.loss import TokenLoss
from megatron_chimed.model.parallel import gather_vocabulary, whole_sequences
from megatron_chimed.model.reward_head import SCORE_KEY
from megatron_chimed.model.transformer import Transformer

__all__ = [
    "SCORE_KEY",
    "Decode",
    "DecodeGroup",
    "KVCache",
    "LoraConfig",
    "ModelConfig",
    "Prefill",
    "TokenLoss",
    "Transformer",
    "shard_specs",
    "build_chunks",
    "count_adapters",
    "describe_attention",
    "gather_vocabulary",
    "initialize_weights",
    "is_adapter",
    "weight_shards",
    "whole_sequences",
]
