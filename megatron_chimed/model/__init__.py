"""Ziya / LLaMA on megatron-core's parallel layers. Read `ziya` first, then `layer`, `attention`."""

from megatron_chimed.model.build import all_pieces, build_chunks, weight_slices
from megatron_chimed.model.cache import KVCache
from megatron_chimed.model.config import ModelConfig
from megatron_chimed.model.init import initialize_weights
from megatron_chimed.model.loss import TokenLoss
from megatron_chimed.model.parallel import gather_vocabulary
from megatron_chimed.model.ziya import Ziya

__all__ = [
    "KVCache",
    "ModelConfig",
    "TokenLoss",
    "Ziya",
    "all_pieces",
    "build_chunks",
    "gather_vocabulary",
    "initialize_weights",
    "weight_slices",
]
