"""`check` finds what opening cannot: changed bytes, ids out of range, missing ends."""

import json

import numpy as np
import pytest

from megatron_chimed.data.checking import check_dataset
from megatron_chimed.data.indexed import IndexedDataset
from megatron_chimed.data.statistics import length_statistics, write_length_histogram
from megatron_chimed.tokenizer import Tokenizer
from tests.unit.data.prefixes import open_prefix, write_prefix
from tests.unit.tokenizer.samples import train_model

DOCUMENTS = [[5, 6, 2], [7, 2], [2]]
SOURCES = (
    {"file": "a.txt", "bytes": 1, "rows": 2, "documents": (0, 2)},
    {"file": "b.txt", "bytes": 1, "rows": 1, "documents": (2, 3)},
)


def verdicts(indexed, tokenizer=None):
    return {f.what: (f.is_good, f.detail) for f in check_dataset(indexed, tokenizer)}


def wrong(indexed, tokenizer=None):
    return {
        what: detail for what, (good, detail) in verdicts(indexed, tokenizer).items() if not good
    }


@pytest.fixture
def prefix(tmp_path):
    path = write_prefix(tmp_path / "data", DOCUMENTS, eod_id=2)
    edit(path, sources=SOURCES)
    return path


def edit(prefix, **facts):
    path = prefix.with_suffix(".meta.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))


def test_a_sound_data_set_passes_every_check(prefix):
    found = verdicts(IndexedDataset(prefix))
    assert all(good for good, _ in found.values())
    assert found["sources"][1] == "2 files cover documents 0 to 3"
    assert found["token ids"][1] == "6 tokens, largest id 7, vocabulary 1000"
    assert found["end of document"][1] == "id 2 ends 3 of 3 documents and stands 0 times within one"


def test_a_flipped_bit_shows_in_the_hash(prefix):
    path = prefix.with_suffix(".bin")
    raw = bytearray(path.read_bytes())
    raw[0] ^= 1
    path.write_bytes(raw)
    assert "but the sidecar states" in wrong(IndexedDataset(prefix))["sha256 of data.bin"]


def test_an_id_outside_the_vocabulary_is_named_with_its_document(prefix):
    edit(prefix, vocab_size=7)
    expected = "document 1: id 7 at token 3 is outside the vocabulary of 7"
    assert wrong(IndexedDataset(prefix)) == {"token ids": expected}
    path = write_prefix(prefix.parent / "negative", [[1], [3, 4]], np.int32)
    np.array([1, 3, -4], "<i4").tofile(path.with_suffix(".bin"))
    assert wrong(IndexedDataset(path))["token ids"].startswith("document 1: id -4 at token 2")


def test_a_wrong_maximum_in_the_sidecar_shows(prefix):
    edit(prefix, max_token_id=6)
    expected = "the largest is 7, but the sidecar states 6"
    assert wrong(IndexedDataset(prefix)) == {"token ids": expected}


@pytest.mark.parametrize(
    ("documents", "detail"),
    [
        (
            [[5, 2], [6], [2]],
            "id 2 ends 2 of 3 documents and stands 0 times within one; document 1",
        ),
        ([[5, 2, 2], [6, 2]], "id 2 ends 2 of 2 documents and stands 1 times within one"),
        ([[5, 2], [], [3, 2]], "document 1 is the first without"),
    ],
)
def test_missing_and_stray_ends_show(tmp_path, documents, detail):
    indexed = open_prefix(tmp_path / "data", documents, eod_id=2)
    assert detail in wrong(indexed)["end of document"]


def test_ends_are_only_counted_where_none_are_promised(tmp_path):
    indexed = open_prefix(tmp_path / "data", [[5, 2], [6]])
    assert "end of document" not in verdicts(indexed)
    good, detail = verdicts(indexed, Tokenizer(train_model()))["end of document"]
    assert good and detail.startswith("id 2 ends 1 of 2 documents")


@pytest.mark.parametrize(
    ("ranges", "detail"),
    [
        ([(0, 1), (2, 3)], "b.txt holds documents (2, 3), not from 1 on"),
        ([(0, 2), (2, 2)], "2 files cover documents 0 to 2"),
        ([(0, 2), (2, 1)], "b.txt holds documents (2, 1)"),
    ],
)
def test_sources_must_cover_the_documents(prefix, ranges, detail):
    edit(prefix, sources=[{**s, "documents": r} for s, r in zip(SOURCES, ranges, strict=True)])
    assert detail in wrong(IndexedDataset(prefix))["sources"]


def test_another_tokenizer_shows_with_both_identities(prefix):
    tokenizer = Tokenizer(train_model())
    expected = f"{tokenizer.identity}, but the data was made with {'0' * 64}"
    assert wrong(IndexedDataset(prefix), tokenizer) == {"tokenizer": expected}


def test_a_stock_file_is_checked_as_far_as_possible(prefix):
    prefix.with_suffix(".meta.json").unlink()
    found = verdicts(IndexedDataset(prefix))
    assert list(found) == ["index", "sidecar", "token ids"]
    assert found["token ids"] == (True, "6 tokens, largest id 7, unknown vocabulary")


def test_lengths_are_summed_up_by_source(prefix):
    rows = length_statistics(IndexedDataset(prefix))
    assert [(r.name, r.documents, r.tokens) for r in rows] == [
        ("a.txt", 2, 5),
        ("b.txt", 1, 1),
        ("all", 3, 6),
    ]
    assert rows[-1].mean == 2.0
    assert rows[-1].quantiles == (1, 1, 2, 3, 3)


@pytest.mark.parametrize("documents", [DOCUMENTS, [[]], [[1]]])
def test_the_histogram_is_a_picture(tmp_path, documents):
    write_length_histogram(open_prefix(tmp_path / "data", documents), tmp_path / "lengths.png")
    assert (tmp_path / "lengths.png").read_bytes()[:4] == b"\x89PNG"
