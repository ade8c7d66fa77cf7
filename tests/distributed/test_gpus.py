"""Which ranks get a GPU, rehearsed on a machine without one."""

import os

import pytest
import torch

from tests import conftest
from tests.distributed import pool


def what_a_worker_sees(rank, world_size, store_path):
    return os.environ.get("CUDA_VISIBLE_DEVICES")


@pytest.fixture
def pool_of(monkeypatch):
    """A pool of its own, beside this many pretended GPUs."""
    pools = []

    def make(count, *, asked=True):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        pools.append(pool.GlooPool(num_gpus=pool.gpus_for_ranks(asked=asked)))
        return pools[-1]

    yield make
    for each in pools:
        each.close()


@pytest.mark.parametrize(
    ("count", "asked", "num_gpus"), [(8, False, 0), (0, True, 0), (1, True, 0), (2, True, 2)]
)
def test_ranks_have_gpus_where_there_are_several(monkeypatch, count, asked, num_gpus):
    """Several ranks on one GPU are refused by nccl: with one GPU all ranks use the CPU."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert pool.gpus_for_ranks(asked=asked) == num_gpus


@pytest.mark.parametrize(("count", "seen"), [(1, ""), (2, "0,1")])
def test_what_a_worker_sees(monkeypatch, pool_of, count, seen):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert pool_of(count).run(what_a_worker_sees, 1, init=False) == [seen]


def test_a_job_of_more_ranks_than_gpus_is_skipped(pool_of):
    with pytest.raises(pytest.skip.Exception, match="4 ranks need a GPU each, and there are 2"):
        pool_of(2).run(what_a_worker_sees, 4, init=False)


class Config:
    def __init__(self, gpu):
        self.gpu = gpu

    def getoption(self, name):
        assert name == "--gpu"
        return self.gpu


@pytest.mark.parametrize(("gpu", "seen"), [(False, ""), (True, "0,1")])
def test_the_gpus_are_hidden_unless_they_are_asked_for(monkeypatch, gpu, seen):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    conftest.pytest_configure(Config(gpu))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == seen


def test_this_process_was_started_without_gpus(request):
    if not request.config.getoption("--gpu"):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
        assert not torch.cuda.is_available()
