"""A blend keeps its shares, gives each data set's samples in order and never changes its past."""

import numpy as np
import pytest

from megatron_chimed.data.datasets.blend import CHUNK_SAMPLES, BlendedDataset, ConcatenatedDataset
from megatron_chimed.errors import ConfigError


class Numbers:
    """Sample `i` is the number `i`."""

    def __init__(self, name):
        self.name = name

    def __getitem__(self, index):
        return {"tokens": np.array([index])}

    def locate(self, index):
        return f"{self.name}:{index}"


def make(*weights):
    return BlendedDataset([Numbers(str(i)) for i in range(len(weights))], weights)


def test_shares_hold_and_samples_come_in_order():
    blend = make(7, 2, 1)
    choices = [blend.choice(i) for i in range(1000)]
    for dataset, share in enumerate((0.7, 0.2, 0.1)):
        samples = [sample for chosen, sample in choices if chosen == dataset]
        assert samples == list(range(len(samples)))
        assert abs(len(samples) - share * 1000) < 3
    assert blend[0]["tokens"].tolist() == [choices[0][1]]
    assert blend.locate(5) == "{}:{}".format(*choices[5])


def test_it_is_megatrons_order():
    from megatron.core.datasets import helpers

    weights = [0.5, 0.3, 0.2]
    dataset_index = np.zeros(5000, np.int16)
    sample_index = np.zeros(5000, np.int64)
    helpers.build_blending_indices(dataset_index, sample_index, weights, 3, 5000, False)
    blend = make(*weights)
    choices = [blend.choice(i) for i in range(5000)]
    assert choices == list(zip(dataset_index.tolist(), sample_index.tolist(), strict=True))


def test_any_place_can_be_read_first():
    """As after a resume: the same as reading all before it."""
    distant = 3 * CHUNK_SAMPLES + 17
    forward = make(0.61, 0.39)
    expected = [forward.choice(i) for i in (0, CHUNK_SAMPLES - 1, CHUNK_SAMPLES, distant)]
    backward = make(0.61, 0.39)
    places = (distant, CHUNK_SAMPLES, CHUNK_SAMPLES - 1, 0)
    assert [backward.choice(i) for i in places] == expected[::-1]
    counts = np.bincount([forward.choice(i)[0] for i in range(0, distant, 1)], minlength=2)
    assert forward.choice(distant)[1] == counts[forward.choice(distant)[0]]


@pytest.mark.parametrize("weights", [(1, 0), (1, -1), (1, float("nan")), (1, float("inf"))])
def test_weights_must_be_positive_numbers(weights):
    with pytest.raises(ConfigError, match="each must be a positive number"):
        make(*weights)


def test_each_data_set_needs_a_weight():
    with pytest.raises(ConfigError, match="a blend of 1 data sets has 2 weights"):
        BlendedDataset([Numbers("a")], [1, 2])


def test_concatenation_reads_every_sample_once():
    sources = [NumberedSource(start=0, size=5), NumberedSource(start=100, size=2)]
    whole = ConcatenatedDataset(sources)
    assert whole.samples_per_epoch == 7
    read = [int(whole[index]["tokens"][0]) for index in range(8)]
    assert read == [0, 1, 2, 3, 4, 100, 101, 0]
    assert whole.locate(6) == "sample 1 of 100"


class NumberedSource:
    """Samples that say who they are."""

    def __init__(self, start, size):
        self.start, self.samples_per_epoch = start, size

    def __getitem__(self, index):
        return {"tokens": np.array([self.start + index])}

    def locate(self, index):
        return f"sample {index} of {self.start}"
