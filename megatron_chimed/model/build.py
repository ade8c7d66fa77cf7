"""Builds the chunks of this rank."""

from collections.abc import Sequence

import torch

from megatron_chimed.config.lora import LoraConfig
from megatron_chimed.config.model import ModelConfig
from megatron_chimed.engine import (
    EngineSettings,
    Ranks,
    ShardSpec,
    TensorShard,
    row_shards,
)
from megatron_chimed.kernels import AUTO, Kernels
from megatron_chimed.model.lora import add_adapters
from megatron_chimed.model.transformer import Transformer


def build_chunks(
    config: ModelConfig,
    *,
    settings: EngineSettings,
    ranks: Ranks,
    kernels: Kernels = AUTO,
    lora: LoraConfig | None = None,
) -> list[Transformer]:
    """The model chunks of this rank, in virtual stage order, with all weights zero.

    Vocabulary padding stays zero from here on: initialisation and loading fill true rows only.
    """
    layout = ranks.layout
    stages = layout.virtual_pipeline_parallel_size
    chunks = [
        Transformer(
            config,
            layout.chunk_layers(stage * layout.pipeline_parallel_size + ranks.pipeline_rank),
            settings=settings,
            group=ranks.tensor_group,
            kernels=kernels,
            vp_stage=stage if stages > 1 else None,
        )
        for stage in range(stages)
    ]
    if lora is not None and lora.rank:
        for chunk in chunks:
            add_adapters(chunk, lora)
    with torch.no_grad():
        for chunk in chunks:
            for parameter in chunk.parameters():
                parameter.zero_()
    return chunks


def shard_specs(chunks: Sequence[Transformer]) -> dict[torch.nn.Parameter, list[ShardSpec]]:
    """What each parameter of this rank holds."""
    return {p: specs for chunk in chunks for p, specs in chunk.shard_specs().items()}


def weight_shards(chunks: Sequence[Transformer]) -> list[TensorShard]:
    """Every shard of weights that this rank holds, as views of live memory."""
    return [s for p, specs in shard_specs(chunks).items() for s in row_shards(specs, p)]
