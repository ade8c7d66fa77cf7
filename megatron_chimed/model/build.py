"""Builds the chunks of this rank."""

from collections.abc import Sequence

import torch

from megatron_chimed.config.lora import LoraConfig
from megatron_chimed.config.model import ModelConfig
from megatron_chimed.engine import (
    EngineSettings,
    Piece,
    Ranks,
    TensorSlice,
    row_slices,
)
from megatron_chimed.kernels import AUTO, Kernels
from megatron_chimed.model.lora import add_adapters
from megatron_chimed.model.ziya import Ziya


def build_chunks(
    config: ModelConfig,
    *,
    settings: EngineSettings,
    ranks: Ranks,
    kernels: Kernels = AUTO,
    lora: LoraConfig | None = None,
) -> list[Ziya]:
    """The model chunks of this rank, in virtual stage order, with all weights zero.

    Vocabulary padding stays zero from here on: initialisation and loading fill true rows only.
    """
    layout = ranks.layout
    stages = layout.virtual_pipeline_parallel_size
    chunks = [
        Ziya(
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


def all_pieces(chunks: Sequence[Ziya]) -> dict[torch.nn.Parameter, list[Piece]]:
    """What each parameter of this rank holds."""
    return {p: held for chunk in chunks for p, held in chunk.pieces().items()}


def weight_slices(chunks: Sequence[Ziya]) -> list[TensorSlice]:
    """Every box of weights that this rank holds, as views of live memory."""
    return [s for p, held in all_pieces(chunks).items() for s in row_slices(held, p)]
