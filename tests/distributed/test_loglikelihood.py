"""Log-likelihoods of continuations at every layout: the same on all ranks."""

import pytest
import torch.distributed as dist

from megatron_chimed.engine import ParallelConfig
from megatron_chimed.generation import log_likelihoods, open_session
from tests.tiers import full_but
from tests.unit.generation import toy
from tests.unit.generation.test_loglikelihood import ITEMS, PREFIX, assert_same, expected

TP, PP = "tensor_parallel_size", "pipeline_parallel_size"
LAYOUTS = {
    "TP2": (2, {TP: 2}),
    "PP2": (2, {PP: 2}),
    "DP2": (2, {}),
    "TP2 x PP2": (4, {TP: 2, PP: 2}),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return toy.save_reference(tmp_path_factory.mktemp("reference"))


def measure(rank, world_size, store_path, checkpoint, parallel):
    store = dist.FileStore(store_path, world_size)
    config = ParallelConfig(timeout_seconds=60, **parallel)
    with open_session(checkpoint, config, world=(rank, world_size, rank), store=store) as session:
        return log_likelihoods(session, ITEMS, prefix=PREFIX, batch_tokens=64)


@pytest.mark.parametrize("layout", full_but(["TP2", "PP2"], LAYOUTS))
def test_every_layout_finds_what_transformers_finds(gloo_pool, checkpoint, layout):
    world_size, parallel = LAYOUTS[layout]
    results = gloo_pool.run(measure, world_size, checkpoint, parallel, init=False)
    assert all(result == results[0] for result in results)
    assert_same(results[0], expected())
