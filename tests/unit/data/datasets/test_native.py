"""The C++ loops against plain implementations, and against numpy's generator."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_chimed.data.datasets.native import blend_chunk, permutation, sample_index


def reference_permutation(size, seed, epoch, stream):
    """Fisher-Yates with Lemire's bounded integers over the raw words of numpy's Philox."""
    key, counter = np.array([seed, stream], np.uint64), np.array([0, 0, epoch, 0], np.uint64)
    generator = np.random.Philox(key=key, counter=counter)
    order = list(range(size))
    for i in range(size - 1, 0, -1):
        bound = i + 1
        threshold = (2**64 - bound) % bound
        product = int(generator.random_raw()) * bound
        while product % 2**64 < threshold:
            product = int(generator.random_raw()) * bound
        j = product >> 64
        order[i], order[j] = order[j], order[i]
    return order


@pytest.mark.parametrize("size", [0, 1, 2, 3, 1000])
@pytest.mark.parametrize(("seed", "epoch", "stream"), [(0, 0, 0), (1234, 7, 1), (2**64 - 1, 3, 0)])
def test_permutations_are_fisher_yates_over_numpys_philox(size, seed, epoch, stream):
    found = permutation(size, seed=seed, epoch=epoch, stream=stream)
    assert found.tolist() == reference_permutation(size, seed, epoch, stream)
    assert found.dtype == np.int32


def test_permutations_differ_in_each_part_of_the_key():
    keys = [(1, 0, 0), (2, 0, 0), (1, 1, 0), (1, 0, 1)]
    orders = {tuple(permutation(50, seed=s, epoch=e, stream=t)) for s, e, t in keys}
    assert len(orders) == 4


def reference_samples(lengths, order, seq_length, samples):
    """Every token named by (place, offset), then sliced."""
    stream = [(place, k) for place, document in enumerate(order) for k in range(lengths[document])]
    return [list(stream[i * seq_length]) for i in range(samples + 1)]


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=40),
    seq_length=st.integers(1, 25),
    wide=st.booleans(),
    randomness=st.randoms(use_true_random=False),
)
def test_the_sample_index_is_that_of_the_joined_stream(lengths, seq_length, wide, randomness):
    order = list(range(len(lengths)))
    randomness.shuffle(order)
    samples = max(sum(lengths) - 1, 0) // seq_length
    if sum(lengths) == 0:
        return
    rows = sample_index(
        np.array(lengths, np.int32),
        np.array(order, np.int64 if wide else np.int32),
        seq_length=seq_length,
        samples=samples,
    )
    assert rows.tolist() == reference_samples(lengths, order, seq_length, samples)


def test_token_counts_beyond_32_bits_are_counted():
    lengths = np.full(5, 2**31 - 1, np.int32)
    rows = sample_index(lengths, np.arange(5), seq_length=2**32, samples=2)
    assert rows.tolist() == [[0, 0], [2, 2], [4, 4]]


@pytest.mark.parametrize(
    ("lengths", "order", "arguments", "message"),
    [
        ([3], [0, 1], (1, 1), r"order\[1\] is 1, but there are 1 documents"),
        ([3], [-1], (1, 1), r"order\[0\] is -1"),
        ([3, -1], [0, 1], (1, 1), "document 1 has a negative length"),
        ([3], [0], (0, 1), "seq_length must be positive: 0"),
        ([3], [0], (1, -1), "samples is negative: -1"),
        ([3], [0], (1, 3), r"fewer than 3 samples of 1 \+ 1 tokens"),
        ([], [], (1, 0), "fewer than 0 samples"),
    ],
)
def test_arguments_that_would_read_outside_are_refused(lengths, order, arguments, message):
    with pytest.raises(ValueError, match=message):
        sample_index(
            np.array(lengths, np.int32),
            np.array(order, np.int32),
            seq_length=arguments[0],
            samples=arguments[1],
        )


def test_arrays_of_another_type_are_refused_not_cut():
    with pytest.raises(TypeError):
        sample_index(np.array([2**40]), np.array([0]), seq_length=1, samples=1)
    with pytest.raises(TypeError):
        permutation(-1.5, seed=0, epoch=0, stream=0)
    with pytest.raises(ValueError, match="size is negative"):
        permutation(-1, seed=0, epoch=0, stream=0)


def reference_blend(weights, counts, size):
    counts, choices = list(counts), []
    for _ in range(size):
        taken = sum(counts)
        lacks = [w * max(taken, 1) - c for w, c in zip(weights, counts, strict=True)]
        chosen = lacks.index(max(lacks))
        choices.append((chosen, counts[chosen]))
        counts[chosen] += 1
    return choices, counts


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(1, 100), min_size=1, max_size=8).flatmap(
        lambda w: st.tuples(st.just(w), st.integers(0, 200))
    )
)
def test_blending_takes_from_what_is_furthest_below_its_share(case):
    raw, size = case
    weights = np.array(raw, np.float64) / sum(raw)
    start = np.zeros(len(raw), np.int64)
    datasets, samples, counts = blend_chunk(weights, start, size)
    choices, expected = reference_blend(weights.tolist(), start.tolist(), size)
    assert list(zip(datasets.tolist(), samples.tolist(), strict=True)) == choices
    assert counts.tolist() == expected
    assert start.tolist() == [0] * len(raw)  # the argument is not written to
    assert (np.abs(counts - weights * size) < len(raw)).all()


@pytest.mark.parametrize(
    ("weights", "counts", "size", "message"),
    [
        ([], [], 1, "weights must be a vector, not empty"),
        ([1.0], [0, 0], 1, "one count per weight"),
        ([1.0], [0], -1, "size is negative"),
    ],
)
def test_blends_that_make_no_sense_are_refused(weights, counts, size, message):
    with pytest.raises(ValueError, match=message):
        blend_chunk(np.array(weights, np.float64), np.array(counts, np.int64), size)


def test_a_missing_extension_is_one_message(tmp_path):
    script = (
        "import sys\n"
        "sys.modules['megatron_chimed._data_helpers'] = None\n"
        "from megatron_chimed.data.datasets.native import permutation\n"
        "from megatron_chimed.errors import run_command\n"
        "sys.exit(run_command(lambda: permutation(3, seed=0, epoch=0, stream=0)))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 78
    assert "make install" in result.stderr
    assert len(result.stderr.splitlines()) == 1
