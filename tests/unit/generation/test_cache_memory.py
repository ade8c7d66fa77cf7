"""A KV cache that does not fit is refused before it is allocated, on all ranks alike."""

import dataclasses
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode

from megatron_chimed.errors import ConfigError
from megatron_chimed.generation import SamplingConfig, cache_memory, generate
from megatron_chimed.generation.cache_memory import CachePlan
from tests.unit.generation import toy


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    with toy.toy_session(toy.save_reference(tmp_path_factory.mktemp("reference"))) as session:
        yield session


def memory(monkeypatch, available):
    monkeypatch.setattr(cache_memory, "available_bytes", lambda device, sharers: available)


def test_a_cache_over_the_budget_is_refused_with_what_to_lower(session, monkeypatch):
    # 2 (K, V) x 4 layers x 4 kv heads x 8 x 4 bytes = 1024 bytes a token; 10 + 7 tokens each.
    memory(monkeypatch, 3 * 17 * 1024)
    prompts = [[5] * 10] * 4
    with pytest.raises(
        ConfigError,
        match=r"KV cache of 4 completions of up to 17 tokens takes .* GiB \(69,632 bytes\) on a "
        r"rank, .* left on its cpu. Lower --max-batch \(at most 3 at this length\), --max-new",
    ):
        generate(session, prompts, SamplingConfig(max_new_tokens=7), max_batch=4)
    assert len(generate(session, prompts, SamplingConfig(max_new_tokens=7), max_batch=3)) == 4
    memory(monkeypatch, 17 * 1024 - 1)
    with pytest.raises(ConfigError, match=r"\(no batch fits at this length\)"):
        generate(session, prompts, SamplingConfig(max_new_tokens=7), max_batch=1)


def test_on_cpu_the_ranks_share_what_the_machine_has(monkeypatch):
    machine = SimpleNamespace(available=12 * 2**30)
    monkeypatch.setattr(cache_memory.psutil, "virtual_memory", lambda: machine)
    assert cache_memory.available_bytes(torch.device("cpu"), 4) == 3 * 2**30


def test_on_cuda_the_allocators_own_reserve_counts(monkeypatch):
    figures = {"mem_get_info": (5, 80), "memory_reserved": 30, "memory_allocated": 20}
    for name, value in figures.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert cache_memory.available_bytes(torch.device("cuda:0"), 4) == 15


def test_a_fake_device_is_not_asked(session, monkeypatch):
    monkeypatch.setattr(cache_memory, "available_bytes", pytest.fail)
    ranks = dataclasses.replace(session.ranks, device=torch.device("cuda:0"))
    with FakeTensorMode():
        cache = cache_memory.allocate_cache(
            dataclasses.replace(session, ranks=ranks),
            CachePlan(num_rows=10**6, longest=9, page_tokens=9, num_pages=10**6),
        )
    assert cache.of_layer(0)[0].shape == (10**6, 4, 9, 8)


def tightest_of_a_rank(rank, world_size):
    """Rank 1 lacks 6 bytes, the others nothing."""
    alone = dist.new_group([rank], use_local_synchronization=True)
    ranks = SimpleNamespace(
        device=torch.device("cpu"),
        layout=SimpleNamespace(world_size=world_size),
        tensor_group=dist.group.WORLD,
        pipeline_group=alone,
    )
    left = 94 if rank == 1 else 1000
    with mock.patch.object(cache_memory, "available_bytes", return_value=left):
        return tuple(cache_memory._tightest(100, ranks))


def test_every_rank_of_a_replica_learns_of_the_tightest(gloo_pool):
    assert gloo_pool.run(tightest_of_a_rank, 2) == [(100, 94)] * 2
