"""Agreement between ranks: payloads, errors, a lost peer, and a group that outlasts jobs."""

import datetime

import pytest
import torch.distributed as dist

from megatron_chimed.errors import CheckpointError, OutputError, ParallelError


def make_agreement():
    from megatron_chimed.engine.agreement import Agreement

    return Agreement(dist.new_group(backend="gloo", timeout=datetime.timedelta(seconds=20)))


def exchange(rank, world_size, gather_bytes):
    """Payloads of one rank and of all, short and long, and errors."""
    from megatron_chimed.engine import agreement as module

    before = module.GATHER_BYTES, module.CHUNK_BYTES, module.ITEMS_PER_EXCHANGE
    module.GATHER_BYTES, module.CHUNK_BYTES, module.ITEMS_PER_EXCHANGE = gather_bytes, 7, 3
    try:
        agreement = make_agreement()
        return [
            agreement.on_all_ranks(lambda: {"rank": rank, "text": "热" * 9 * rank}),
            agreement.on_all_ranks(lambda: [rank] if rank == 1 else None),
            agreement.on_all_ranks(lambda: None),
            agreement.on_rank_0(lambda: (f"of rank {rank}", [0.1, None])),
            [*agreement.gather_items((rank, n) for n in range(5 * rank))],
            message_of(lambda: agreement.on_all_ranks(lambda: 1 / rank)),
            message_of(lambda: agreement.on_rank_0(lambda: open(b"/no/\xff"))),
            message_of(lambda: [*agreement.gather_items(1 / (2 - n - rank) for n in range(4))]),
            agreement.on_all_ranks(lambda: rank),
        ]
    finally:
        module.GATHER_BYTES, module.CHUNK_BYTES, module.ITEMS_PER_EXCHANGE = before


def message_of(action):
    try:
        action()
    except (CheckpointError, OutputError) as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("gather_bytes", [1 << 20, 0])
def test_every_rank_gets_the_same(gloo_pool, gather_bytes):
    first, *others = gloo_pool.run(exchange, 3, gather_bytes, timeout=100)
    assert all(got == first for got in others)
    *results, divided, missing, late, ranks = first
    assert results == [
        [{"rank": n, "text": "热" * 9 * n} for n in range(3)],
        [None, [1], None],
        [None, None, None],
        ["of rank 0", [0.1, None]],
        [[n, m] for n, m in [*[(1, m) for m in range(3)], *[(2, m) for m in range(3)]]]
        + [[1, 3], [1, 4], [2, 3], [2, 4], [2, 5]]
        + [[2, m] for m in range(6, 10)],
    ]
    assert divided == "CheckpointError: rank 0: ZeroDivisionError: division by zero"
    assert missing.startswith("OutputError: rank 0: FileNotFoundError: ")
    assert late == "CheckpointError: rank 0, 1, 2: ZeroDivisionError: division by zero"
    assert ranks == [0, 1, 2], "an error leaves nothing behind"


def lose_a_peer(rank, world_size):
    agreement = make_agreement()
    agreement.on_all_ranks(lambda: None)  # both are connected
    if rank == 1:
        return None
    try:
        agreement.on_all_ranks(lambda: None)
    except ParallelError as error:
        return str(error)
    return "nothing was noticed"


@pytest.mark.timing
def test_a_lost_peer_is_an_error_to_try_again(gloo_pool):
    message, _ = gloo_pool.run(lose_a_peer, 2, timeout=60)
    assert "rank 0 lost a peer" in message
    assert "start the same command again" in message


def agree_between_jobs(rank, world_size, store_path):
    from megatron_chimed import engine
    from tests.unit.engine.world import layout_of

    store = dist.FileStore(store_path, world_size)
    agreement = engine.connect(
        rank=rank,
        world_size=world_size,
        timeout_seconds=20,
        store=dist.PrefixStore("connect", store),
    )
    results = [agreement.on_all_ranks(lambda: rank)]
    for job in range(2):
        ranks = engine.join(
            layout_of(world_size=world_size, tensor_parallel_size=2),
            rank=rank,
            local_rank=rank,
            store=dist.PrefixStore(f"job_{job}", store),
        )
        results += [agreement.on_rank_0(lambda job=job: f"job {job}")]
        results += [ranks.agreement.on_all_ranks(lambda: 10 * rank)]
        engine.leave()
        results += [agreement.broadcast_flag(rank == 0), dist.is_initialized()]
    return results


def test_an_agreement_outlasts_the_jobs_that_its_ranks_join(gloo_pool):
    first, second = gloo_pool.run(agree_between_jobs, 2, init=False)
    job = [[0, 10], True, False]
    assert first == second == [[0, 1], "job 0", *job, "job 1", *job]
