"""What the pictures draw."""

import numpy as np

from megatron_chimed.rejection.report.round_plots import _running_median


def test_the_running_median_has_one_value_for_each_length():
    """Of 200 answers 150 were cut off at 64 tokens: several bands of one length."""
    random = np.random.default_rng(0)
    lengths = np.minimum(np.concatenate([np.arange(10, 60), np.full(150, 64)]), 64)
    scores = random.normal(size=200)
    order = random.permutation(200)
    middles, medians = _running_median(lengths[order], scores[order])
    assert middles == sorted(set(middles)) and middles[-1] == 64.0
    assert len(middles) == len(medians) == 4  # of 12 bands 3 are of other lengths
    assert len(_running_median(np.full(50, 7), scores[:50])[0]) == 1
    assert _running_median(np.full(50, 7), scores[:50])[1] == [np.median(scores[:50])]


def test_the_running_median_follows_the_lengths():
    lengths = np.arange(1200)
    middles, medians = _running_median(lengths, lengths / 10.0)
    assert len(middles) == 12
    assert np.allclose(medians, np.array(middles) / 10)
