"""The KV cache of a job: its size, and a refusal before it exhausts the device's memory."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import psutil
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensor

from megatron_chimed.config.model import ModelConfig
from megatron_chimed.engine import Ranks
from megatron_chimed.errors import ConfigError
from megatron_chimed.generation.requests import Request
from megatron_chimed.generation.session import Session
from megatron_chimed.model import KVCache

GIB = 2**30
PAGE_TOKENS = 16
"""Tokens of a page: a row wastes half of one on average."""
WORTHWHILE = 0.8
"""On CPU rows have pages only if that saves a fifth of the memory: a row that is in one piece is
read in place, and one in pages is put together first, for each layer and token."""


@dataclass(frozen=True, kw_only=True)
class CachePlan:
    """The rows and pages of a cache."""

    num_rows: int
    """Completions that run together, and a shared prefix if there is one."""
    longest: int
    """Tokens of the longest row."""
    page_tokens: int
    """Tokens of a page; with `longest` a row is in one piece."""
    num_pages: int
    """The most pages that can be needed at the same time."""

    @property
    def first_pages(self) -> int:
        """Pages to begin with."""
        return self.num_pages if self.page_tokens == self.longest else self.num_rows


def plan_cache(
    requests: Sequence[Request],
    max_new_tokens: int,
    max_batch: int,
    *,
    on_cpu: bool,
) -> CachePlan:
    """The cache of a job of completions.

    Args:
        requests: At least one.
        max_new_tokens: Of the sampling.
        max_batch: Number of completions that run together.
        on_cpu: Whether attention reads a row in place if it is in one piece.
    """
    size, rows = PAGE_TOKENS, min(max_batch, len(requests))
    longest = max(len(request.prompt) for request in requests) + max_new_tokens
    num_candidates = Counter(request.prompt for request in requests)
    prefixes = {request.prompt[: request.prefix_length] for request in requests} - {()}
    num_rows = rows + bool(prefixes)
    own, shared = [], {}
    for request in requests:
        total, in_prefix = len(request.prompt) + max_new_tokens, request.prefix_length // size
        # Whole pages of the prompt behind the prefix; its last token is not prefilled.
        whole = (len(request.prompt) - 1) // size - in_prefix
        shared[request.prompt] = whole if num_candidates[request.prompt] > 1 else 0
        own.append(-(-total // size) - in_prefix - shared[request.prompt])
    # Whichever rows run together, they need no more than the largest, of as many prompts.
    most = sum(sorted(own)[-rows:]) + sum(sorted(shared.values())[-rows:])
    most += sum(sorted(-(-len(prefix) // size) for prefix in prefixes)[-num_rows:])
    if on_cpu and most * size >= WORTHWHILE * num_rows * longest:
        return CachePlan(
            num_rows=num_rows, longest=longest, page_tokens=longest, num_pages=num_rows
        )
    return CachePlan(num_rows=num_rows, longest=longest, page_tokens=size, num_pages=most)


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
        max_batch: Number of pages; or of completions, if all are of one length.
        max_length: Tokens of a page, or of such a completion with its prompt.
        tensor_parallel_size: Number of ranks that split the key/value heads.
        dtype: Of keys and values, as of the weights.
    """
    heads = config.kv_heads_of_rank(tensor_parallel_size)
    values = 2 * num_layers * max_batch * max_length * heads * config.head_dim
    return values * dtype.itemsize


def allocate_cache(session: Session, plan: CachePlan) -> KVCache:
    """The cache of this rank with its first pages; the ranks of a replica call it together.

    Args:
        session: The model.
        plan: Its rows and pages.

    Raises:
        ConfigError: All its pages are larger than the memory that is left on one of the ranks: the
            same error on all of them. Activations and logits come on top, so what fits by a hair
            may still run out of memory.
    """
    config, layout = session.config, session.ranks.layout
    dtype = session.settings.params_dtype
    needed = cache_bytes(
        config,
        num_layers=len(session.layers),
        max_batch=plan.num_pages,
        max_length=plan.page_tokens,
        tensor_parallel_size=layout.tensor_parallel_size,
        dtype=dtype,
    )
    tightest = _tightest(needed, session.ranks)
    if tightest.needed > tightest.available:
        raise ConfigError(_refusal(tightest, plan, session.ranks.device))
    heads = config.kv_heads_of_rank(layout.tensor_parallel_size)
    return KVCache(
        session.layers,
        (plan.first_pages, heads, plan.page_tokens, config.head_dim),
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


def _refusal(memory: _Memory, plan: CachePlan, device: torch.device) -> str:
    # The cache grows in proportion to its rows, if they are of one length.
    fitting = plan.num_rows * memory.available // memory.needed
    batch = f"at most {fitting}" if fitting else "no batch fits"
    return (
        f"the KV cache of {plan.num_rows} completions of up to {plan.longest:,} tokens takes "
        f"{memory.needed / GIB:,.1f} GiB ({memory.needed:,} bytes) on a rank, and "
        f"{memory.available / GIB:,.1f} GiB are left on its {device.type}. Lower --max-batch "
        f"({batch} at this length), --max-new-tokens or the longest prompt, or raise "
        "--parallel.tensor_parallel_size."
    )
