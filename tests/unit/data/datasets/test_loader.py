"""Reading ahead changes nothing but the time; errors reach the caller; no thread is left behind."""

import threading
from itertools import count, islice

import numpy as np
import pytest

from megatron_chimed.data.datasets.loader import check_token_range, collate, iterate_batches
from megatron_chimed.errors import DataError


class Numbers:
    """Sample `i` holds the ids i, i + 1, i + 2; reading `broken` raises."""

    def __init__(self, broken=None):
        self.broken = broken
        self.read = []

    def __getitem__(self, index):
        self.read.append(index)
        if index == self.broken:
            raise DataError(f"sample {index} is broken")
        ids = np.arange(index, index + 3)
        return {"tokens": ids, "labels": ids + 1, "loss_mask": np.ones(3, np.float32)}

    def locate(self, index):
        return f"document {index}"


STEPS = [[[4 * k, 4 * k + 1], [4 * k + 2, 4 * k + 3]] for k in range(5)]


def prefetch_threads():
    return [thread for thread in threading.enumerate() if thread.name == "data-prefetch"]


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_batches_are_the_samples_in_order(prefetch):
    steps = list(iterate_batches(Numbers(), STEPS, vocab_size=100, prefetch=prefetch))
    assert [[b["sample_index"].tolist() for b in step] for step in steps] == STEPS
    assert steps[1][0]["tokens"].tolist() == [[4, 5, 6], [5, 6, 7]]
    assert steps[1][0]["loss_mask"].shape == (2, 3)
    assert not prefetch_threads()


@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_error_arrives_at_its_step(prefetch):
    batches = iterate_batches(Numbers(broken=9), STEPS, vocab_size=100, prefetch=prefetch)
    assert len(list(islice(batches, 2))) == 2
    with pytest.raises(DataError, match="sample 9 is broken"):
        next(batches)
    assert not prefetch_threads()


def test_closing_ends_the_thread_of_an_endless_run():
    dataset = Numbers()
    batches = iterate_batches(dataset, ([[k]] for k in count()), vocab_size=10**9, prefetch=2)
    assert next(batches)[0]["sample_index"].tolist() == [0]
    assert len(prefetch_threads()) == 1
    batches.close()
    assert not prefetch_threads()
    assert len(dataset.read) <= 5  # it read ahead, but not on and on


@pytest.mark.parametrize("prefetch", [0, 2])
def test_ids_beyond_the_vocabulary_stop_the_run(prefetch):
    batches = iterate_batches(Numbers(), STEPS, vocab_size=9, prefetch=prefetch)
    next(batches)
    with pytest.raises(
        DataError, match=r"sample 7 \(document 7\): tokens\[2\] is 9, outside the vocabulary of 9"
    ):
        next(batches)


@pytest.mark.parametrize("name", ["tokens", "labels"])
@pytest.mark.parametrize("wrong", [-1, -100, 50, 10**6])
def test_the_range_check_names_sample_place_and_id(name, wrong):
    batch = collate(Numbers(), [7, 8])
    check_token_range(batch, 50)
    batch[name][1, 2] = wrong
    with pytest.raises(DataError, match=rf"sample 8 .*: {name}\[2\] is {wrong}, outside .* of 50"):
        check_token_range(batch, 50)
