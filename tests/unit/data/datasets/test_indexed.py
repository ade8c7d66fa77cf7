"""Damaged or mismatched files are refused on opening, with file and byte."""

import gc
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_chimed.data.datasets.indexed import HEADER, IndexedDataset, dtype_for_vocab
from megatron_chimed.errors import ChimedError, ConfigError, DataError
from tests.unit.data.prefixes import open_prefix, write_prefix

DOCUMENTS = [[5, 6, 7], [], [8], [9, 10, 11, 12]]


@pytest.fixture
def prefix(tmp_path):
    """A stock file: no sidecar to catch what the index itself must show."""
    path = write_prefix(tmp_path / "data", DOCUMENTS)
    (tmp_path / "data.meta.json").unlink()
    return path


def patch(path, offset, layout, value):
    raw = bytearray(path.read_bytes())
    struct.pack_into(layout, raw, offset, value)
    path.write_bytes(raw)


def test_documents_come_back(tmp_path):
    indexed = open_prefix(tmp_path / "data", DOCUMENTS)
    assert [indexed[i].tolist() for i in range(len(indexed))] == DOCUMENTS
    assert indexed.lengths.tolist() == [3, 0, 1, 4]
    assert indexed.document_indices.tolist() == [0, 1, 2, 3, 4]
    assert indexed.dtype == np.uint16
    assert indexed.num_documents == 4
    assert indexed.get(3, 1, 2).tolist() == [10, 11]
    assert indexed.get(3, 4).tolist() == []
    assert [indexed.document_start(i) for i in range(4)] == [0, 3, 3, 4]
    assert indexed.document_lengths(1, 4).tolist() == [0, 1, 4]


@pytest.mark.parametrize("arguments", [(-1,), (4,), (0, 0, 4), (0, -1), (0, 4), (0, 2, -1)])
def test_reading_outside_is_an_error(prefix, arguments):
    with pytest.raises(IndexError, match="sequence"):
        IndexedDataset(prefix).get(*arguments)


def test_views_outlive_the_data_set(prefix):
    indexed = IndexedDataset(prefix)
    view = indexed[3]
    del indexed
    gc.collect()
    assert view[:3].tolist() == [9, 10, 11]


def test_views_are_read_only(prefix):
    with pytest.raises(ValueError, match="read-only"):
        IndexedDataset(prefix)[0][0] = 1


def test_no_tokens_at_all_can_be_opened(tmp_path):
    indexed = open_prefix(tmp_path / "data", [[], []])
    assert indexed[1].tolist() == []
    assert indexed.document_lengths(0, 2).tolist() == [0, 0]
    assert indexed.document_start(1) == 0


S, D = 4, 5
LENGTHS, POINTERS, ENTRIES = HEADER.itemsize, HEADER.itemsize + 4 * S, HEADER.itemsize + 12 * S


@pytest.mark.parametrize(
    ("offset", "layout", "value", "message"),
    [
        (0, "<B", 0x58, r"byte 0: expected b'MMIDIDX\\x00\\x00', found b'XMIDIDX"),
        (9, "<Q", 2, "byte 9: expected version 1, found version 2"),
        (17, "<B", 0, "byte 17: expected a dtype code of .*, found 0"),
        (17, "<B", 9, "byte 17: expected a dtype code of .*, found 9"),
        (17, "<B", 4, "byte 58: expected the sum of the lengths before it, 12, found 6"),
        (18, "<Q", 5, "byte 18: expected 134 bytes for 5 sequences"),
        (18, "<Q", 2**63, "byte 18: expected"),
        (26, "<Q", 2**64 - 1, "byte 18: expected"),
        (LENGTHS + 8, "<i", -1, "byte 42: expected a length >= 0, found -1"),
        (LENGTHS, "<i", 4, "byte 58: expected the sum of the lengths before it, 8, found 6"),
        (LENGTHS + 12, "<i", 5, "16 bytes, but its index data.idx counts 18"),
        (POINTERS + 8, "<q", 2**62, "byte 58: expected the sum .* 6, found 4611686018427387904"),
        (POINTERS, "<q", -2, "byte 50: expected the sum of the lengths before it, 0, found -2"),
        (ENTRIES, "<q", 1, "byte 82: expected document indices that start at 0"),
        (ENTRIES + 8 * 4, "<q", 3, "byte 114: expected a last document index of 4, found 3"),
        (ENTRIES + 8, "<q", 3, "byte 98: expected document indices that do not decrease, found 2"),
    ],
)
def test_a_damaged_index_is_named_with_its_byte(prefix, offset, layout, value, message):
    patch(prefix.with_suffix(".idx"), offset, layout, value)
    with pytest.raises(DataError, match=message):
        IndexedDataset(prefix)


@pytest.mark.parametrize("keep", [0, 10, 33, 34, 60, 121])
def test_a_truncated_index_is_refused(prefix, keep):
    path = prefix.with_suffix(".idx")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"data\.idx, byte"):
        IndexedDataset(prefix)


@pytest.mark.parametrize("size", [0, 15, 17, 18])
def test_a_token_file_of_another_size_is_refused(prefix, size):
    path = prefix.with_suffix(".bin")
    path.write_bytes((path.read_bytes() + b"xx")[:size])
    with pytest.raises(DataError, match=rf"data\.bin: {size} bytes, but its index .* 16"):
        IndexedDataset(prefix)


def test_files_of_two_runs_are_refused_even_where_the_sizes_agree(tmp_path):
    write_prefix(tmp_path / "a", [[1, 2], [3]])
    write_prefix(tmp_path / "b", [[1], [2], [3]])
    shutil.copy(tmp_path / "b.idx", tmp_path / "a.idx")
    with pytest.raises(DataError, match="sequences is 2, but a.idx has 3"):
        IndexedDataset(tmp_path / "a")


def test_missing_files_are_named(prefix):
    with pytest.raises(ConfigError, match=r"data\.bin\.bin does not exist. Give the path without"):
        IndexedDataset(f"{prefix}.bin")
    prefix.with_suffix(".idx").unlink()
    with pytest.raises(ConfigError, match=r"data\.idx does not exist"):
        IndexedDataset(prefix)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_no_byte_of_the_index_can_crash_the_reader(tmp_path_factory, data):
    """Either our error, or a data set all of whose documents can be read."""
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    if not folder.exists():
        folder.mkdir()
        write_prefix(folder / "data", DOCUMENTS)
        (folder / "data.meta.json").unlink()
        shutil.copy(folder / "data.idx", folder / "original")
    raw = bytearray((folder / "original").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    (folder / "data.idx").write_bytes(raw[: data.draw(st.integers(len(raw) - 2, len(raw)))])
    try:
        indexed = IndexedDataset(folder / "data")
    except ChimedError:
        return
    assert sum(len(indexed[i]) for i in range(len(indexed))) == len(indexed.tokens)
    assert indexed.document_lengths(0, indexed.num_documents).sum() == len(indexed.tokens)


def test_a_document_of_several_sequences_is_their_sum(tmp_path):
    """Stock files may hold them; documents may be empty too."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(str(tmp_path / "data.bin"), dtype=np.int32)
    builder.add_document([1, 2, 3, 4, 5], [2, 3])
    builder.add_document([], [])
    builder.add_document([6], [1])
    builder.end_document()
    builder.finalize(str(tmp_path / "data.idx"))
    indexed = IndexedDataset(tmp_path / "data")
    assert indexed.document_indices.tolist() == [0, 2, 2, 3, 3]
    assert indexed.document_lengths(0, 4).tolist() == [5, 0, 1, 0]
    assert indexed.document_lengths(1, 3).tolist() == [0, 1]
    assert [indexed.document_start(i) for i in range(4)] == [0, 5, 5, 6]


@pytest.mark.parametrize(("vocab_size", "name"), [(65499, "uint16"), (65500, "int32")])
def test_the_element_type_is_megatrons_choice(vocab_size, name):
    assert dtype_for_vocab(vocab_size).name == name


def test_opening_needs_no_memory_per_token(tmp_path):
    """A hundred times the tokens, the same peak: nothing is copied in."""
    script = (
        "import resource, sys\n"
        "from megatron_chimed.data.datasets.indexed import IndexedDataset\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "indexed = IndexedDataset(sys.argv[1])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    write_prefix(tmp_path / "data", [np.zeros(16_000_000, np.uint16)] * 2)
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "data")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert int(result.stdout) < 8_000, result.stderr  # kB, of 64 MB
