"""The KV cache of a job: its size, and a refusal before it exhausts the device's memory."""

from typing import NamedTuple

import psutil
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensor

from megatron_chimed.config.model import ModelConfig
from megatron_chimed.engine import Ranks
from megatron_chimed.errors import ConfigError
from megatron_chimed.generation.session import Session
from megatron_chimed.model import KVCache

GIB = 2**30


def cache_bytes(
    config: ModelConfig,
    *,
    num_layers: int,
    max_batch: int,
    max_length: int,
    tensor_parallel_size: int,
    dtype: torch.dtype,
) -> int:
    """Bytes of keys and values on one rank.

    Args:
        config: Sizes of the whole model.
        num_layers: Number of layers on the rank.
        max_batch: Number of completions that run together.
        max_length: Longest prompt plus its completion, in tokens.
        tensor_parallel_size: Number of ranks that split the key/value heads.
        dtype: Of keys and values, as of the weights.
    """
    heads = config.kv_heads_of_rank(tensor_parallel_size)
    values = 2 * num_layers * max_batch * max_length * heads * config.head_dim
    return values * dtype.itemsize


def allocate_cache(session: Session, num_slots: int, max_length: int) -> KVCache:
    """The cache of this rank; the ranks of a replica call it together.

    Args:
        session: The model.
        num_slots: Number of completions that run together.
        max_length: Longest prompt plus its completion, in tokens.

    Raises:
        ConfigError: It is larger than the memory that is left on one of the ranks: the same error
            on all of them. Activations and logits come on top, so what fits by a hair may still run
            out of memory.
    """
    config, layout = session.config, session.ranks.layout
    dtype = session.settings.params_dtype
    needed = cache_bytes(
        config,
        num_layers=len(session.layers),
        max_batch=num_slots,
        max_length=max_length,
        tensor_parallel_size=layout.tensor_parallel_size,
        dtype=dtype,
    )
    tightest = _tightest(needed, session.ranks)
    if tightest.needed > tightest.available:
        raise ConfigError(_refusal(tightest, num_slots, max_length, session.ranks.device))
    heads = config.kv_heads_of_rank(layout.tensor_parallel_size)
    return KVCache(
        session.layers,
        (num_slots, heads, max_length, config.head_dim),
        dtype=dtype,
        device=session.ranks.device,
    )


def available_bytes(device: torch.device, sharers: int) -> int:
    """Bytes that can still be allocated.

    Args:
        device: On CUDA what the driver has free, and what torch's allocator holds unused.
        sharers: On CPU, number of ranks that allocate from the same memory at once.
    """
    if device.type != "cuda":
        return psutil.virtual_memory().available // sharers
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


class _Memory(NamedTuple):
    needed: int
    available: int


def _tightest(needed: int, ranks: Ranks) -> _Memory:
    """What the rank of the replica with the largest excess needs and has."""
    if isinstance(torch.empty(0, device=ranks.device), FakeTensor):
        return _Memory(needed, needed)  # planned without memory
    available = available_bytes(ranks.device, ranks.layout.world_size)
    sizes = torch.tensor([needed - available, needed], dtype=torch.float64, device=ranks.device)
    for group in (ranks.tensor_group, ranks.pipeline_group):
        if dist.get_world_size(group) > 1:
            every = [torch.empty_like(sizes) for _ in range(dist.get_world_size(group))]
            dist.all_gather(every, sizes, group=group)
            sizes = max(every, key=lambda each: each[0].item())
    excess, needed = (int(value) for value in sizes.tolist())
    return _Memory(needed, needed - excess)


def _refusal(memory: _Memory, num_slots: int, max_length: int, device: torch.device) -> str:
    # The cache grows in proportion to both.
    fitting = num_slots * memory.available // memory.needed
    batch = f"at most {fitting}" if fitting else "no batch fits"
    return (
        f"the KV cache of {num_slots} completions of up to {max_length:,} tokens takes "
        f"{memory.needed / GIB:,.1f} GiB ({memory.needed:,} bytes) on a rank, and "
        f"{memory.available / GIB:,.1f} GiB are left on its {device.type}. Lower --max-batch "
        f"({batch} at this length), --max-new-tokens or the longest prompt, or raise "
        "--parallel.tensor_parallel_size."
    )
