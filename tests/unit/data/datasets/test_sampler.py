"""The samples of a step do not depend on the number of ranks."""

from itertools import islice

import pytest

from megatron_chimed.data.datasets.sampler import MicroBatchSampler
from megatron_chimed.errors import ConfigError


def make(rank=0, size=1, consumed=0, global_batch=8, micro_batch=2):
    return MicroBatchSampler(
        consumed_samples=consumed,
        global_batch_size=global_batch,
        micro_batch_size=micro_batch,
        data_parallel_rank=rank,
        data_parallel_size=size,
    )


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("micro_batch", [1, 2])
@pytest.mark.parametrize("consumed", [0, 24, 13])
def test_a_step_takes_the_same_samples_on_any_number_of_ranks(size, micro_batch, consumed):
    per_rank = [
        list(islice(make(rank, size, consumed, micro_batch=micro_batch), 5)) for rank in range(size)
    ]
    for step in range(5):
        taken = [sample for rank in per_rank for batch in rank[step] for sample in batch]
        first = consumed + 8 * step
        assert sorted(taken) == list(range(first, first + 8))
        for rank in per_rank:
            assert len(rank[step]) == 8 // (micro_batch * size)
            assert all(len(batch) == micro_batch for batch in rank[step])


def test_ranks_take_turns_within_a_step():
    """The micro-batches of all ranks, in turn, are the samples in order."""
    ranks = [next(iter(make(rank, 2, consumed=100))) for rank in range(2)]
    assert ranks == [[[100, 101], [104, 105]], [[102, 103], [106, 107]]]


def test_resuming_with_other_ranks_goes_on_where_the_run_stopped():
    before = [s for step in islice(make(0, 1), 3) for batch in step for s in batch]
    after = [
        s
        for rank in range(4)
        for step in islice(make(rank, 4, consumed=24), 2)
        for batch in step
        for s in batch
    ]
    assert before + sorted(after) == list(range(40))


def test_the_number_of_microbatches_is_told():
    assert make(size=2).num_microbatches == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"global_batch": 10, "micro_batch": 2, "size": 2},
            r"global_batch_size \(10\) is not a multiple of micro_batch_size \(2\) x data-parallel "
            r"size \(2\): .* nearest that works is 8",
        ),
        ({"global_batch": 1, "micro_batch": 2}, "nearest that works is 2"),
        ({"global_batch": 0}, "global_batch_size is 0; it must be at least 1"),
        ({"micro_batch": -1}, "micro_batch_size is -1"),
        ({"consumed": -8}, "consumed_samples is -8"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        make(**options)
