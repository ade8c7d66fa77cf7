"""Fresh weights that are the same for every layout.

Each global tensor is drawn from a generator seeded by its name and the seed, then every rank takes
its shard. Cost: every tensor-parallel rank draws whole tensors (about 0.1 G values a second and
thread); transient memory is the largest tensor in fp32.
"""

import math
import zlib
from collections.abc import Container

import torch

from megatron_chimed.config.model import ModelConfig
from megatron_chimed.engine import TensorShard, row_shards
from megatron_chimed.model.lora import A_SUFFIX, B_SUFFIX
from megatron_chimed.model.transformer import Transformer

_INTO_RESIDUAL = ("o_proj.weight", "down_proj.weight")


@torch.no_grad()
def initialize_weights(
    chunk: Transformer, seed: int, *, keys: Container[str] | None = None
) -> None:
    """Fills a chunk: norms with one, biases with zero, matrices with normal values.

    An adapter adds nothing at first: its B is zero. Its A is uniform with the variance 1 / (3 in),
    PEFT's choice.

    Args:
        chunk: The chunk, on its device.
        seed: Same seed, same global weights, whatever the layout.
        keys: Only these tensors, by their global names; None is all.

    Source: Radford et al., Language Models are Unsupervised Multitask Learners (2019), section 2.3,
    for the scaling of residual projections by 1 / sqrt(2 layers).
    """
    for parameter, specs in chunk.shard_specs().items():
        for shard in row_shards(specs, parameter):
            if keys is None or shard.key in keys:
                _fill(shard, chunk.model_config, seed)


def _fill(shard: TensorShard, config: ModelConfig, seed: int) -> None:
    if len(shard.global_shape) == 1 and not shard.key.endswith(".bias"):
        shard.tensor.fill_(1.0)
        return
    if shard.key.endswith((B_SUFFIX, ".bias")):
        shard.tensor.zero_()
        return
    std = config.init_std
    if shard.key.endswith(_INTO_RESIDUAL):
        std /= math.sqrt(2 * config.num_layers)
    # A CPU generator reads the lower 32 bits of its seed alone: both have to be in them.
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {shard.key}".encode()))
    whole = torch.empty(shard.global_shape)
    if shard.key.endswith(A_SUFFIX):
        bound = 1 / math.sqrt(shard.global_shape[-1])
        whole.uniform_(-bound, bound, generator=generator)
    else:
        whole.normal_(0.0, std, generator=generator)
    where = tuple(
        slice(start, start + size)
        for start, size in zip(shard.offset, shard.tensor.shape, strict=True)
    )
    shard.tensor.copy_(whole[where])
