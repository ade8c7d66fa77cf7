"""Samples: every token of an epoch once, in an order that depends on seed and index alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_chimed.data.datasets.pretrain import PretrainDataset
from megatron_chimed.errors import DataError
from tests.unit.data.prefixes import numbered_documents, open_prefix

LENGTHS = [5, 0, 17, 1, 30, 2, 44, 0, 9]


@pytest.fixture(scope="module")
def indexed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrain")
    return open_prefix(folder / "data", numbered_documents(LENGTHS))


def make(indexed, seq_length=10, documents=(0, 9), seed=1234, shuffle=True):
    return PretrainDataset(
        indexed, documents=documents, seq_length=seq_length, seed=seed, shuffle=shuffle
    )


def window(sample):
    return [*sample["tokens"].tolist(), int(sample["labels"][-1])]


def test_arrays_have_their_shapes_and_types(indexed):
    sample = make(indexed)[0]
    assert {key: (value.shape, value.dtype.name) for key, value in sample.items()} == {
        "tokens": ((10,), "int64"),
        "labels": ((10,), "int64"),
        "loss_mask": ((10,), "float32"),
        "position_ids": ((10,), "int64"),
    }
    assert (sample["loss_mask"] == 1).all()
    assert sample["position_ids"].tolist() == list(range(10))
    assert sample["tokens"][1:].tolist() == sample["labels"][:-1].tolist()


def test_without_shuffling_the_samples_are_the_stream_cut_up(indexed):
    dataset = make(indexed, shuffle=False)
    assert dataset.samples_per_epoch == (sum(LENGTHS) - 1) // 10 == 10
    for index in range(10):
        assert window(dataset[index]) == list(range(10 * index, 10 * index + 11))
    assert window(dataset[23]) == window(dataset[3])


@settings(max_examples=60, deadline=None)
@given(seq_length=st.integers(1, 107), seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 4))
def test_an_epoch_has_each_pair_of_token_and_label_at_most_once(indexed, seq_length, seed, epoch):
    """All but the remainder of the joined stream; which documents meet depends on the shuffle."""
    dataset = make(indexed, seq_length=seq_length, seed=seed)
    first = epoch * dataset.samples_per_epoch
    windows = [window(dataset[first + i]) for i in range(dataset.samples_per_epoch)]
    inputs = sorted(token for tokens in windows for token in tokens[:-1])
    assert len(inputs) == len(set(inputs)) == (sum(LENGTHS) - 1) // seq_length * seq_length
    starts = np.cumsum([0, *LENGTHS])
    ends = {int(end) - 1 for end in starts[1:]}
    for tokens in windows:
        for here, there in zip(tokens, tokens[1:], strict=False):
            assert there == here + 1 or (here in ends and there in starts)


def test_the_joined_epoch_is_the_documents_in_the_drawn_order(indexed):
    """The samples of an epoch, put back in order, are whole documents one after another."""
    dataset = make(indexed, seq_length=3)
    pieces = [window(dataset[i]) for i in range(dataset.samples_per_epoch)]
    following = {piece[0]: piece for piece in pieces}
    heads = set(following) - {piece[-1] for piece in pieces}
    assert len(heads) == 1
    stream, head = [], heads.pop()
    while head in following:
        stream += following[head][:-1]
        head = following[head][-1]
    documents = [ids for ids in numbered_documents(LENGTHS) if ids]
    position = 0
    while position < len(stream):
        document = next(ids for ids in documents if ids[0] == stream[position])
        assert stream[position : position + len(document)] == document[: len(stream) - position]
        position += len(document)


def test_epochs_and_seeds_differ_and_are_pure(indexed):
    def order(seed, epoch):
        dataset = make(indexed, seed=seed)
        return [window(dataset[epoch * 10 + i]) for i in range(10)]

    assert order(1, 0) == order(1, 0)
    orders = [order(1, 0), order(1, 1), order(2, 0), order(1, 1000)]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])


def test_reading_in_any_sequence_gives_the_same_samples(indexed):
    dataset = make(indexed)
    indices = [45, 3, 27, 3, 99, 0, 45, 12]  # more epochs than are cached
    fresh = [window(make(indexed)[index]) for index in indices]
    assert [window(dataset[index]) for index in indices] == fresh


def test_a_range_of_documents_uses_no_other(indexed):
    dataset = make(indexed, seq_length=4, documents=(4, 7))
    allowed = set(range(23, 23 + 30 + 2 + 44))
    assert dataset.samples_per_epoch == (76 - 1) // 4
    for index in range(40):
        assert set(window(dataset[index])) <= allowed


def test_locate_names_the_documents_of_a_sample(indexed):
    dataset = make(indexed, seq_length=30, shuffle=False)
    assert dataset.locate(0) == f"{indexed.prefix}, document 0, 2, 3, 4"
    assert make(indexed, seq_length=60, shuffle=False).locate(0).endswith("0, 2, 3, 4, ...")
    assert make(indexed, documents=(4, 5)).locate(1) == f"{indexed.prefix}, document 4"


@pytest.mark.parametrize(("documents", "tokens"), [((0, 1), 5), ((1, 2), 0), ((3, 3), 0)])
def test_too_few_tokens_are_an_error_with_both_numbers(indexed, documents, tokens):
    with pytest.raises(DataError, match=rf"hold {tokens} tokens, .* seq_length 10 takes 11"):
        make(indexed, documents=documents)


def test_exactly_one_sample_is_enough(indexed):
    assert make(indexed, seq_length=29, documents=(4, 5)).samples_per_epoch == 1
    with pytest.raises(DataError, match="hold 30 tokens"):
        make(indexed, seq_length=30, documents=(4, 5))


def test_elements_that_are_no_integers_are_refused(tmp_path):
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    from megatron_chimed.data.datasets.indexed import IndexedDataset

    builder = IndexedDatasetBuilder(str(tmp_path / "data.bin"), dtype=np.float32)
    builder.add_document([1.5, 2.5], [2])
    builder.finalize(str(tmp_path / "data.idx"))
    with pytest.raises(DataError, match="float32 elements are not token ids"):
        make(IndexedDataset(tmp_path / "data"), documents=(0, 1), seq_length=1)
