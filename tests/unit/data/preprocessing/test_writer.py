"""Output is complete or absent, and byte-identical to Megatron's."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.datasets import indexed_dataset as stock

from megatron_chimed.data.datasets.indexed import IndexedDataset
from megatron_chimed.data.preprocessing import writer as writing
from megatron_chimed.data.preprocessing.writer import IndexedWriter
from megatron_chimed.errors import DataError, OutputError
from megatron_chimed.files import publish
from tests.unit.data.prefixes import edit_sidecar, open_prefix, write_prefix

DTYPES = (np.uint8, np.int8, np.int16, np.int32, np.int64, np.uint16)
DOCUMENTS = [[1, 2, 3], [4], list(range(100)), [0, 127]]


def write_stock(prefix, documents, dtype):
    builder = stock.IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for ids in documents:
        builder.add_document(ids, [len(ids)])
    builder.finalize(f"{prefix}.idx")


@pytest.mark.parametrize("dtype", DTYPES)
def test_megatron_writes_the_same_bytes_and_reads_ours(tmp_path, dtype):
    write_prefix(tmp_path / "ours", DOCUMENTS, dtype)
    write_stock(tmp_path / "theirs", DOCUMENTS, dtype)
    for suffix in (".bin", ".idx"):
        ours = (tmp_path / f"ours{suffix}").read_bytes()
        assert ours == (tmp_path / f"theirs{suffix}").read_bytes()
    opened = stock.IndexedDataset(str(tmp_path / "ours"))
    assert [opened[i].tolist() for i in range(len(opened))] == DOCUMENTS
    assert opened.document_indices.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("dtype", [*DTYPES, np.float32, np.float64])
def test_we_read_what_megatron_writes(tmp_path, dtype):
    write_stock(tmp_path / "theirs", DOCUMENTS, dtype)
    indexed = IndexedDataset(tmp_path / "theirs")
    assert indexed.sidecar is None
    assert indexed.dtype == dtype
    assert [indexed[i].tolist() for i in range(len(indexed))] == DOCUMENTS


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=20), max_size=12))
def test_any_documents_come_back_from_both_readers(tmp_path_factory, documents):
    folder = tmp_path_factory.mktemp("any")
    indexed = open_prefix(folder / "data", documents, np.int32)
    assert [indexed[i].tolist() for i in range(len(indexed))] == documents
    if any(documents):  # Megatron's reader cannot map an empty file
        opened = stock.IndexedDataset(str(folder / "data"))
        assert [opened[i].tolist() for i in range(len(opened))] == documents


@pytest.mark.parametrize(
    ("dtype", "ids", "message"),
    [
        (np.uint16, [1, 70000], r"document 1: token id 70000 does not fit uint16 \(0 to 65535\)"),
        (np.uint16, [-1], "document 1: token id -1 does not fit uint16"),
        (np.int32, [2**31], "document 1: token id 2147483648 does not fit int32"),
        (np.int32, [0, -5], "document 1: token id -5 does not fit int32"),
    ],
)
def test_ids_that_do_not_fit_are_refused(tmp_path, dtype, ids, message):
    with IndexedWriter(tmp_path / "data", dtype) as writer:
        writer.add_document([1])
        with pytest.raises(DataError, match=message):
            writer.add_document(ids)


def test_the_document_of_a_bad_id_is_counted_right_within_a_batch(tmp_path):
    with IndexedWriter(tmp_path / "data", np.uint16) as writer:
        writer.add_documents(np.array([1, 2]), [1, 1])
        with pytest.raises(DataError, match="document 4: token id 70000"):
            writer.add_documents(np.array([1, 2, 3, 70000, 5]), [3, 0, 2])


def test_leaving_without_finalize_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), IndexedWriter(tmp_path / "data", np.uint16) as writer:
        writer.add_document([1])
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_writer_are_overwritten(tmp_path):
    (tmp_path / ".tmp-data.work").mkdir()
    for name in (".bin", "lengths", ".idx", "lock", "journal.json"):
        (tmp_path / ".tmp-data.work" / name).write_bytes(b"x" * 1000)
    assert open_prefix(tmp_path / "data", [[7]])[0].tolist() == [7]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.bin", "data.idx", "data.meta.json"]


@pytest.mark.parametrize("name", ["data.bin", "data.idx", "data.meta.json"])
def test_existing_output_is_kept_unless_told_otherwise(tmp_path, name):
    (tmp_path / name).write_bytes(b"precious")
    with pytest.raises(OutputError, match=rf"{name} exists already.* --overwrite"):
        IndexedWriter(tmp_path / "data", np.uint16)
    with IndexedWriter(tmp_path / "data", np.uint16, overwrite=True):
        pass  # aborted: the old file stays
    assert (tmp_path / name).read_bytes() == b"precious"


def test_two_writers_of_one_prefix_are_refused(tmp_path):
    with IndexedWriter(tmp_path / "data", np.uint16) as writer:
        writer.add_document([1])
        with pytest.raises(OutputError, match=r"is being written by process \d+ on "):
            IndexedWriter(tmp_path / "data", np.uint16)
        writer.add_document([2])
        assert writer.tokens == 2


def test_the_index_appears_last(tmp_path, monkeypatch):
    """Without it nothing can be opened, so a crash in between leaves no half."""
    order = []

    def record(old, new):
        order.append(new.name)
        publish(old, new)

    monkeypatch.setattr(writing, "publish", record)
    write_prefix(tmp_path / "data", [[1]])
    assert order == ["data.bin", "data.meta.json", "data.idx"]


def test_the_sidecar_is_checked_when_it_is_read(tmp_path):
    prefix = write_prefix(tmp_path / "data", [[1, 2]])
    path = tmp_path / "data.meta.json"
    edit_sidecar(path)
    good = json.loads(path.read_text())
    for change, message in (
        ({"format_version": 1}, "format_version is 1, this program reads 2: preprocess again"),
        ({"tokens": 3}, "tokens is 3, but data.idx has 2"),
        ({"dtype": "int32"}, "dtype is 'int32', but data.idx has 'uint16'"),
        ({"novel": 1}, "missing or unknown field"),
        ({"sources": [{"file": "a"}]}, "missing or unknown field"),
        ({"sequences": "1"}, "of a wrong type.*sequences is '1'"),
        ({"eod_id": True}, "of a wrong type.*eod_id is True"),
        (
            {"sources": [{"file": "a", "bytes": 1, "rows": 1, "documents": [0, "x"]}]},
            "of a wrong type.*documents is",
        ),
    ):
        path.write_text(json.dumps({**good, **change}))
        with pytest.raises(DataError, match=message):
            IndexedDataset(prefix)
    path.write_text("{")
    with pytest.raises(DataError, match=r"data\.meta\.json is not valid JSON"):
        IndexedDataset(prefix)
    path.write_text("[]")
    with pytest.raises(DataError, match="format_version is None"):
        IndexedDataset(prefix)
