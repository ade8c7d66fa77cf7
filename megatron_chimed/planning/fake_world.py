"""One process as any rank of a world of any size.

Process groups are torch's fake backend, whose collectives do nothing, and tensors have shapes but
no memory. So the real model code runs for any layout on a laptop in about a second.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron_chimed.engine import ParallelLayout, Ranks, join, leave, one_stream


@contextlib.contextmanager
def fake_rank(layout: ParallelLayout, rank: int) -> Iterator[Ranks]:
    """Joins as `rank` of the layout's world, without other processes and without memory."""
    ranks = join(layout, rank=rank, local_rank=0, store=FakeStore(), backend="fake")
    try:
        # A fake draw would leave the real generator in a state of zeros.
        with torch.random.fork_rng(devices=[]), one_stream():
            with FakeTensorMode(allow_non_fake_inputs=True):
                yield ranks
    finally:
        leave()
