"""Random streams come back exactly, dropout streams of megatron-core included."""

import json

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from megatron_chimed import engine
from tests.unit.engine.world import layout_of, one_rank, token_batch, whole_model


def tracker():
    """megatron-core's, imported after the engine prepared it."""
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    return get_cuda_rng_tracker()


def draws():
    """One draw from torch's generator and one from each of megatron-core's streams."""
    drawn = {"torch": torch.rand(3)}
    for name in tracker().get_states():
        with tracker().fork(name):
            drawn[name] = F.dropout(torch.ones(64), 0.5)
    return drawn


def test_every_stream_comes_back():
    with one_rank():
        first = draws()
        state = json.loads(json.dumps(engine.rng_state()))  # it is kept as text
        expected = draws()
        draws()
        engine.set_rng_state(state)
        again = draws()
    assert len(expected) > 1, "no dropout stream"
    for name, values in expected.items():
        assert torch.equal(values, again[name]), name
        assert not torch.equal(values, first[name]), f"{name} does not move"


def test_reading_the_state_draws_nothing():
    with one_rank():
        assert engine.rng_state() == engine.rng_state()


def test_dropout_of_a_model_comes_back():
    tokens, positions, _ = token_batch()
    with one_rank() as ranks:
        model = whole_model(ranks, attention_dropout=0.3, hidden_dropout=0.3)
        state = engine.rng_state()
        first, second = model(tokens, positions), model(tokens, positions)
        engine.set_rng_state(state)
        third, fourth = model(tokens, positions), model(tokens, positions)
    assert not torch.equal(first, second)
    assert torch.equal(first, third) and torch.equal(second, fourth)


@pytest.mark.parametrize("same", [True, False])
def test_the_seed_decides(same):
    drawn = []
    for seed in (1, 1 if same else 2):
        with one_rank() as ranks:
            engine.seed_ranks(seed, ranks)
            drawn.append(draws())
    for name in drawn[0]:
        assert torch.equal(drawn[0][name], drawn[1][name]) == same


def streams(rank, world_size, store_path, parallel):
    layout = layout_of(world_size=world_size, **parallel)
    store = dist.FileStore(store_path, world_size)
    ranks = engine.join(layout, rank=rank, local_rank=rank, store=store)
    try:
        engine.seed_ranks(7, ranks)
        with tracker().fork():
            split = torch.rand(4)
        return torch.rand(4), split
    finally:
        engine.leave()


def test_tensor_parallel_ranks_share_one_stream_and_split_the_other(gloo_pool):
    (whole, split), (other_whole, other_split) = gloo_pool.run(
        streams, 2, {"tensor_parallel_size": 2}, init=False
    )
    assert torch.equal(whole, other_whole)
    assert not torch.equal(split, other_split)


@pytest.mark.parametrize("parallel", [{}, {"pipeline_parallel_size": 2, "pipeline_split": (1, 2)}])
def test_replicas_and_stages_drop_other_values(gloo_pool, parallel):
    (whole, split), (other_whole, other_split) = gloo_pool.run(streams, 2, parallel, init=False)
    assert not torch.equal(whole, other_whole)
    assert not torch.equal(split, other_split)
