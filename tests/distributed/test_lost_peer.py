"""A peer that is gone is an error to try again, named with the step, not a traceback."""

import time

import pytest
import torch.distributed as dist

from megatron_chimed import engine
from megatron_chimed.errors import ParallelError
from megatron_chimed.observe.timers import Stopwatch
from megatron_chimed.training import loop
from tests.distributed import jobs

pytestmark = pytest.mark.timing


def step_without_the_peer(rank, world_size, store_path, **options):
    job = jobs.make_job(rank, world_size, store_path, **options)
    try:
        if rank == 1:
            return None
        batches = job.batches(job.datasets.train, consumed=0, prefetch=0)
        loop.train_step(job, next(batches), Stopwatch())
    except ParallelError as error:
        return str(error)
    finally:
        engine.leave()
    return "nothing was noticed"


@pytest.mark.parametrize("parallel", [jobs.TP2, jobs.PP2, jobs.DP2_DISTRIBUTED])
def test_a_step_without_its_peer_says_try_again(gloo_pool, parallel):
    message, _ = gloo_pool.run(
        step_without_the_peer, 2, init=False, parallel={**parallel, "timeout_seconds": 3}
    )
    assert "a peer was lost while training step 1" in message
    assert "start the same command again" in message


def late_rank(rank, world_size, store_path):
    """Joins with the collectives' timeout at half of what the last rank is late by."""
    store = dist.FileStore(store_path, world_size)
    time.sleep(4 * rank)
    layout = jobs.make_layout(jobs.MODEL, {"timeout_seconds": 2}, world_size)
    engine.join(layout, rank=rank, local_rank=rank, store=store)
    engine.leave()


def test_ranks_may_start_later_than_a_collective_waits(gloo_pool):
    gloo_pool.run(late_rank, 2, init=False)


def test_other_errors_keep_their_traceback():
    with pytest.raises(RuntimeError, match="a bug"), engine.peers_may_fail("testing"):
        raise RuntimeError("a bug")
