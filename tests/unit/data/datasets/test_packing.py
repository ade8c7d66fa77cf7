"""Packing loses nothing, repeats nothing and keeps the capacity; its order is a pure function."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_chimed.data.datasets.native import pack, permutation
from megatron_chimed.data.datasets.packing import PackOrder

LENGTHS = st.integers(1, 200).flatmap(
    lambda capacity: st.tuples(st.lists(st.integers(0, capacity), max_size=120), st.just(capacity))
)


def reference_pack(lengths, capacity):
    """Best-fit decreasing by looking at every pack; of equal ones the one touched last."""
    packs, touched = [], []
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        room = [capacity - sum(lengths[i] for i in members) for members in packs]
        fitting = [k for k in range(len(packs)) if room[k] >= lengths[item]]
        if fitting:
            best = min(room[k] for k in fitting)
            chosen = max((k for k in fitting if room[k] == best), key=touched.index)
            touched.remove(chosen)
        else:
            chosen = len(packs)
            packs.append([])
        packs[chosen].append(item)
        touched.append(chosen)
    return packs


@settings(max_examples=300, deadline=None)
@given(LENGTHS)
def test_it_is_best_fit_decreasing(case):
    lengths, capacity = case
    order, starts = pack(np.array(lengths, np.int32), capacity)
    packs = [order[a:b].tolist() for a, b in zip(starts, starts[1:], strict=False)]
    assert packs == reference_pack(lengths, capacity)


@settings(max_examples=300, deadline=None)
@given(LENGTHS, st.randoms(use_true_random=False))
def test_nothing_is_lost_repeated_or_too_much(case, randomness):
    lengths, capacity = case
    order, starts = pack(np.array(lengths, np.int32), capacity)
    assert sorted(order.tolist()) == list(range(len(lengths)))
    assert starts[0] == 0 and starts[-1] == len(lengths)
    sizes = [sum(lengths[i] for i in order[a:b]) for a, b in zip(starts, starts[1:], strict=False)]
    assert all(size <= capacity for size in sizes)
    assert all(np.diff(starts) > 0), "an empty pack"
    shuffled = list(lengths)
    randomness.shuffle(shuffled)
    assert len(pack(np.array(shuffled, np.int32), capacity)[1]) == len(starts)


@pytest.mark.parametrize(
    ("lengths", "capacity", "message"),
    [
        ([1, 9], 8, r"lengths\[1\] is 9, but a pack holds 0 to 8"),
        ([-1], 8, r"lengths\[0\] is -1"),
        ([1], 0, "capacity must be positive: 0"),
        ([1], 2**31, "capacity must be positive"),
    ],
)
def test_what_cannot_be_packed_is_refused(lengths, capacity, message):
    with pytest.raises(ValueError, match=message):
        pack(np.array(lengths, np.int32), capacity)


def mixture(count, capacity):
    """Lengths as of dialogues: 70 % with a median of 180 tokens, 25 % of 700, 5 % of 1800."""
    generator = np.random.default_rng(0)
    medians = generator.choice([180, 700, 1800], count, p=[0.7, 0.25, 0.05])
    lengths = np.round(medians * np.exp(generator.normal(0, 0.6, count)))
    return np.clip(lengths, 1, capacity).astype(np.int32)


@pytest.mark.parametrize("capacity", [2048, 4096])
def test_a_million_lengths_are_packed_tightly_and_at_once(capacity):
    """benchmarks/fetch.py has the figure, 0.03 s; this bound leaves room for a busy machine."""
    lengths = mixture(1_000_000, capacity)
    seconds = []
    for _ in range(3):
        start = time.process_time()
        starts = pack(lengths, capacity)[1]
        seconds.append(time.process_time() - start)
    padding = 1 - lengths.sum(dtype=np.int64) / ((len(starts) - 1) * capacity)
    assert padding <= 0.0005
    assert min(seconds) <= 0.3


def epoch_of(order, number):
    first = number * order.packs_per_epoch
    return [order.items(first + i).tolist() for i in range(order.packs_per_epoch)]


def test_each_epoch_has_every_item_once_in_another_order_and_company():
    lengths = mixture(5000, 300)
    order = PackOrder(lengths, 300, seed=3)
    epochs = [epoch_of(order, number) for number in range(3)]
    for packs in epochs:
        assert sorted(item for members in packs for item in members) == list(range(5000))
        assert all(lengths[members].sum() <= 300 for members in packs)
    first, second = (
        {frozenset(members) for members in packs if len(members) > 1} for packs in epochs[:2]
    )
    assert len(first & second) < len(first) / 2, "the same companions again"
    # Long items come first out of best fit: shuffled, both halves are alike.
    longest = [lengths[members].max() for members in epochs[0]]
    half = len(longest) // 2
    assert np.mean(longest[:half]) == pytest.approx(np.mean(longest[half:]), rel=0.2)


@pytest.mark.parametrize("epoch", [0, 3])
def test_sequences_and_packs_are_shuffled_from_streams_of_their_own(epoch):
    """Each sequence fills a pack, so the order of an epoch is one shuffle after the other."""
    order = PackOrder(np.full(50, 8, np.int32), 8, seed=5)
    sequences, packs = (permutation(50, seed=5, epoch=epoch, stream=stream) for stream in (0, 1))
    assert epoch_of(order, epoch) == [[item] for item in sequences[packs]]


def test_order_is_a_function_of_seed_and_number_alone():
    lengths = mixture(200, 1000)
    forward = [PackOrder(lengths, 1000, seed=1).items(i).tolist() for i in (900, 0, 77)]
    order = PackOrder(lengths, 1000, seed=1)
    assert [order.items(i).tolist() for i in (900, 0, 77)] == forward
    assert epoch_of(PackOrder(lengths, 1000, seed=2), 0) != epoch_of(order, 0)


def test_without_shuffling_every_epoch_is_the_first():
    order = PackOrder(mixture(200, 1000), 1000, seed=1, shuffle=False)
    assert epoch_of(order, 0) == epoch_of(order, 4)
