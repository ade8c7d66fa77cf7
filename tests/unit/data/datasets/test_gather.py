"""Gathering in C++: the arrays of megatron-core's GPTDataset, and no crash on any file."""

import mmap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_chimed.data.datasets.native import gather, gather_pack, mark_documents
from megatron_chimed.data.datasets.pretrain import AtEod, PretrainDataset, _SampleEpoch
from megatron_chimed.errors import DataError
from tests.unit.data.prefixes import open_prefix, write_prefix

EOD = 2
OPTIONS = {
    "plain": {},
    "eod_mask_loss": {"eod_mask_loss": True},
    "reset_position_ids": {"reset_position_ids": True},
    "both": {"eod_mask_loss": True, "reset_position_ids": True},
}


class StockTokenizer:
    """What GPTDataset asks of one; no id is padding."""

    vocab_size, eod, pad = 1000, EOD, -1
    unique_identifiers = {"class": "StockTokenizer"}


@pytest.fixture(scope="module")
def documents():
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 60, 80)
    # Some documents hold an EOD in their midst, as quoted text would.
    return [[*generator.integers(1, 1000, n - 1).tolist(), EOD] for n in lengths]


@pytest.fixture(scope="module")
def prefix(documents, tmp_path_factory):
    return write_prefix(tmp_path_factory.mktemp("gather") / "data", documents, eod_id=EOD)


def stock_dataset(prefix, seq_length, cache, **options):
    """megatron-core's own, over the same files."""
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.utils import Split

    options = {"eod_mask_loss": False, "reset_position_ids": False, **options}
    config = GPTDatasetConfig(
        random_seed=7,
        sequence_length=seq_length,
        split="1,0,0",
        tokenizer=StockTokenizer(),
        reset_attention_mask=options.pop("reset_attention_mask", False),
        create_attention_mask=True,
        path_to_cache=str(cache),
        mid_level_dataset_surplus=0.005,
        **options,
    )
    tokens = GPTDataset.build_low_level_dataset(str(prefix), config)
    documents = np.arange(len(tokens.sequence_lengths), dtype=np.int32)
    return GPTDataset(tokens, str(prefix), documents, None, Split.train, config)


def with_indices_of(stock, dataset):
    """Makes ours read what theirs drew: document, sample and shuffle index."""
    epoch = _SampleEpoch(stock.document_index, stock.sample_index, stock.shuffle_index)
    dataset._epoch = lambda number: epoch
    return dataset


@pytest.mark.parametrize("seq_length", [1, 16, 100])
@pytest.mark.parametrize("name", OPTIONS)
def test_samples_are_those_of_megatron_core(prefix, documents, tmp_path, name, seq_length):
    options = OPTIONS[name]
    stock = stock_dataset(prefix, seq_length, tmp_path, **options)
    at_eod = AtEod(
        eod_id=EOD,
        reset_position_ids=options.get("reset_position_ids", False),
        mask_loss=options.get("eod_mask_loss", False),
    )
    ours = PretrainDataset(
        open_indexed(prefix), documents=(0, 80), seq_length=seq_length, seed=0, at_eod=at_eod
    )
    assert ours.samples_per_epoch == len(stock)
    ours = with_indices_of(stock, ours)
    for index in range(len(stock)):
        expected, found = stock[index], ours[index]
        for key in ("tokens", "labels", "loss_mask", "position_ids"):
            assert np.array_equal(expected[key].numpy(), found[key]), (index, key)
            assert str(expected[key].dtype) == f"torch.{found[key].dtype}"
        assert "segment_ids" not in found


def test_segments_are_megatron_cores_reset_attention_mask(prefix, tmp_path):
    stock = stock_dataset(prefix, 50, tmp_path, reset_attention_mask=True)
    at_eod = AtEod(eod_id=EOD, reset_attention=True)
    ours = PretrainDataset(
        open_indexed(prefix), documents=(0, 80), seq_length=50, seed=0, at_eod=at_eod
    )
    ours = with_indices_of(stock, ours)
    for index in range(len(stock)):
        segments = ours[index]["segment_ids"]
        assert segments.dtype == np.int32
        sees = np.tril(segments[:, None] == segments[None, :])
        hidden = stock[index]["attention_mask"][0].numpy()  # True: may not see
        assert np.array_equal(sees, ~hidden)


def open_indexed(prefix):
    from megatron_chimed.data.datasets.indexed import IndexedDataset

    return IndexedDataset(prefix)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.int32, np.int64])
def test_every_element_type_is_read(tmp_path, dtype):
    indexed = open_prefix(tmp_path / "data", [[1, 2, 3], [4, 5], [6, 7]], dtype=dtype)
    dataset = PretrainDataset(indexed, documents=(0, 3), seq_length=6, seed=0, shuffle=False)
    assert dataset[0]["tokens"].tolist() == [1, 2, 3, 4, 5, 6]
    assert dataset[0]["labels"].tolist() == [2, 3, 4, 5, 6, 7]


def test_shared_arrays_cannot_be_written_to(prefix):
    dataset = PretrainDataset(open_indexed(prefix), documents=(0, 80), seq_length=8, seed=0)
    for key in ("position_ids", "loss_mask"):
        with pytest.raises(ValueError, match="read-only"):
            dataset[0][key][0] = 5


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, 4), max_size=30), which=st.integers(0, 7))
def test_marks_are_those_written_plainly(ids, which):
    arrays = {
        "positions": np.full(len(ids), -9, np.int64),
        "loss_mask": np.full(len(ids), -9, np.float32),
        "segments": np.full(len(ids), -9, np.int32),
    }
    chosen = {key: array for i, (key, array) in enumerate(arrays.items()) if which >> i & 1}
    mark_documents(np.array(ids, np.int64), EOD, **chosen)
    position = segment = 0
    for i, token in enumerate(ids):
        expected = {"positions": position, "loss_mask": token != EOD, "segments": segment}
        assert all(array[i] == expected[key] for key, array in chosen.items())
        position = 0 if token == EOD else position + 1
        segment += token == EOD
    assert all((arrays[key] == -9).all() for key in arrays.keys() - chosen.keys())


TOKENS = np.arange(100, 110, dtype=np.uint16)


@pytest.mark.parametrize(
    ("starts", "lengths", "message"),
    [
        ([8], [3], r"tokens 8\+3 of a token file of 10"),
        ([-1], [3], r"tokens -1\+3 of"),
        ([2**62], [3], "of a token file of 10"),
        ([5], [2**63 - 1], "of a token file of 10"),
        ([2], [-1], r"tokens 2\+-1 of"),
        ([0, 0], [2, 2], "a piece of 2 tokens where the sample has room for 1"),
        ([0], [2], "hold 2 tokens of 3"),
        ([], [], "hold 0 tokens of 3"),
    ],
)
def test_pieces_outside_the_file_or_the_sample_are_refused(starts, lengths, message):
    starts, lengths = np.array(starts, np.int64), np.array(lengths, np.int64)
    with pytest.raises(IndexError, match=message):
        gather(TOKENS, starts, lengths, ids=np.empty(3, np.int64))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1)), max_size=3
    )
)
def test_no_place_whatever_reads_outside(pieces):
    """Either an error or exactly those tokens."""
    starts = np.array([start for start, _ in pieces], np.int64)
    lengths = np.array([length for _, length in pieces], np.int64)
    try:
        gather_pack(TOKENS, np.ones(10, np.uint8), starts, lengths, size=16)
    except IndexError:
        return
    assert all(0 <= s <= s + n <= 10 for s, n in pieces)


def test_arguments_of_another_type_or_size_are_refused():
    one = np.ones(1, np.int64)
    for tokens in (np.ones(3, np.float32), np.ones((2, 2), np.int32), np.arange(9)[::2]):
        with pytest.raises((TypeError, ValueError), match="tokens must be"):
            gather(tokens, one, one, ids=np.empty(1, np.int64))
    with pytest.raises(TypeError):
        gather(TOKENS, one, one, ids=np.empty(1, np.int32))
    with pytest.raises(ValueError, match="starts and lengths must be vectors of one size"):
        gather(TOKENS, one, np.ones(2, np.int64), ids=np.empty(1, np.int64))
    with pytest.raises(ValueError, match="one target per token"):
        gather_pack(TOKENS, np.ones(9, np.uint8), one, one, size=4)
    with pytest.raises(ValueError, match="size must be positive: 0"):
        gather_pack(TOKENS, np.ones(10, np.uint8), one, one, size=0)
    with pytest.raises(TypeError, match="positions: wrong dtype"):
        mark_documents(one, EOD, positions=np.empty(1, np.int32))
    with pytest.raises(ValueError, match="segments must be a vector of 1"):
        mark_documents(one, EOD, segments=np.empty(2, np.int32))


def test_files_changed_under_a_run_are_an_error_not_a_crash(tmp_path):
    indexed = open_prefix(tmp_path / "data", [[1, 2, 3, 4, 5], [6, 7, 8, 9]])
    dataset = PretrainDataset(indexed, documents=(0, 2), seq_length=8, seed=0, shuffle=False)
    assert dataset[0]["tokens"].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    with open(indexed.idx_path, "r+b") as stream:
        # The second sequence's byte offset, behind the header and two lengths.
        mmap.mmap(stream.fileno(), 0)[34 + 8 + 8 : 34 + 8 + 16] = (2**40).to_bytes(8, "little")
    with pytest.raises(DataError, match="no longer those that were opened"):
        dataset[0]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_pack_is_its_pieces_written_plainly(data):
    tokens = np.array(data.draw(st.lists(st.integers(0, 999), min_size=1, max_size=40)), np.uint16)
    targets = np.array(data.draw(st.lists(st.integers(0, 1), min_size=40, max_size=40)), np.uint8)
    pieces = data.draw(
        st.lists(
            st.integers(0, len(tokens)).flatmap(
                lambda s: st.tuples(st.just(s), st.integers(0, len(tokens) - s))
            ),
            max_size=5,
        )
    )
    size = max(sum(n for _, n in pieces) + data.draw(st.integers(0, 5)), 1)
    found = gather_pack(
        tokens,
        targets[: len(tokens)],
        np.array([s for s, _ in pieces], np.int64),
        np.array([n for _, n in pieces], np.int64),
        size=size,
    )
    expected = []
    pieces = [(s, n) for s, n in pieces if n]
    for segment, (start, length) in enumerate(pieces):
        for i in range(length):
            following = start + i + 1
            label = (tokens[following], targets[following]) if i + 1 < length else (0, 0)
            expected.append((tokens[start + i], *label, i, segment))
    expected += [(0, 0, 0, i, len(pieces)) for i in range(size - len(expected))]
    keys = ("tokens", "labels", "loss_mask", "position_ids", "segment_ids")
    assert [tuple(row) for row in zip(*(found[key].tolist() for key in keys), strict=True)] == [
        tuple(map(int, row)) for row in expected
    ]
    assert [found[key].dtype.name for key in keys] == [
        *("int64", "int64", "float32", "int64", "int32")
    ]
