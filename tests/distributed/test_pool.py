"""The pool of gloo workers: results, reuse, failures, hangs, and no process left behind."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.distributed.pool import RankError

ROOT = Path(__file__).resolve().parents[2]


def sum_of_ranks(rank, world_size, offset, *, scale=1):
    import torch

    value = torch.tensor([float(rank + offset)])
    torch.distributed.all_reduce(value)
    return {"pid": os.getpid(), "threads": torch.get_num_threads(), "sum": value * scale}


def own_group(rank, world_size, store_path):
    import torch

    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store_path}", rank=rank, world_size=world_size
    )
    size = torch.distributed.get_world_size()
    torch.distributed.destroy_process_group()
    return size


def forgets_its_group(rank, world_size, store_path):
    import torch

    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store_path}", rank=rank, world_size=world_size
    )


def raises_on_rank_one(rank, world_size):
    import torch

    print(f"about to work on rank {rank}")
    if rank == 1:
        raise ValueError("planted fault")
    torch.distributed.barrier()


def dies_on_rank_zero(rank, world_size):
    if rank == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def waits_on_rank_one(rank, world_size):
    if rank == 1:
        threading_event_that_is_never_set()


def threading_event_that_is_never_set():
    threading.Event().wait()


def holds_open_and_waits(rank, world_size, store_path, fifo):
    with open(fifo, "w") as stream:
        print(os.getpid(), file=stream, flush=True)
        threading.Event().wait()


def test_results_come_in_rank_order_and_processes_are_reused(gloo_pool):
    first = gloo_pool.run(sum_of_ranks, 2, 10)
    second = gloo_pool.run(sum_of_ranks, 2, 0, scale=3)
    assert [r["sum"].item() for r in first] == [21.0, 21.0]
    assert [r["sum"].item() for r in second] == [3.0, 3.0]
    assert [r["pid"] for r in first] == [r["pid"] for r in second]
    assert len({r["pid"] for r in first} | {os.getpid()}) == 3
    assert {r["threads"] for r in first} == {1}


def test_a_function_may_make_its_own_group(gloo_pool):
    assert gloo_pool.run(own_group, 2, init=False) == [2, 2]


def test_a_group_left_behind_is_an_error(gloo_pool):
    with pytest.raises(RankError, match="forgets_its_group left its process group"):
        gloo_pool.run(forgets_its_group, 1, init=False)
    assert gloo_pool.run(own_group, 1, init=False) == [1]


def test_an_exception_names_its_rank_and_the_pool_goes_on(gloo_pool):
    with pytest.raises(
        RankError, match=r"(?s)failed on rank .* of 2 ranks.*planted fault"
    ) as caught:
        gloo_pool.run(raises_on_rank_one, 2)
    assert "ValueError: planted fault" in caught.value.errors[1]
    assert "about to work on rank 1" in str(caught.value)
    assert gloo_pool.run(sum_of_ranks, 2, 0)[0]["sum"].item() == 1.0


def test_a_dead_process_is_reported(gloo_pool):
    with pytest.raises(RankError, match="rank 0: the process died with exit code -9"):
        gloo_pool.run(dies_on_rank_zero, 1)


@pytest.mark.timing
def test_a_hang_names_the_rank_and_shows_its_stack(gloo_pool):
    gloo_pool.run(sum_of_ranks, 2, 0)  # so that the timeout below covers no start of a process
    with pytest.raises(RankError, match=r"hung for 2 s on \[1\] of 2 ranks") as caught:
        gloo_pool.run(waits_on_rank_one, 2, timeout=2)
    assert "threading_event_that_is_never_set" in str(caught.value)


@pytest.mark.timing
@pytest.mark.timeout(60)
def test_workers_die_with_a_killed_parent(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    script = (
        "from tests.distributed.pool import GlooPool\n"
        "from tests.distributed.test_pool import holds_open_and_waits\n"
        f"GlooPool().run(holds_open_and_waits, 1, {str(fifo)!r}, init=False)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    with open(fifo) as stream:
        assert int(stream.readline()) != parent.pid
        parent.kill()
        parent.wait(timeout=10)
        assert stream.read() == "", "the end of the file comes when the last writer is gone"
