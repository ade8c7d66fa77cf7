"""Corpora in a byte-level vocabulary: hostile rows, normalised rows, readable views."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from megatron_chimed.data.datasets.indexed import IndexedDataset
from megatron_chimed.data.datasets.prefix import open_prefix
from megatron_chimed.data.inspection.print_views import LAYOUTS, print_view
from megatron_chimed.data.inspection.token_views import view_document
from megatron_chimed.data.inspection.verification import verify_prefix
from megatron_chimed.data.preprocessing.plan import PreprocessConfig
from megatron_chimed.data.preprocessing.preprocess import preprocess
from megatron_chimed.data.reading import row_block
from megatron_chimed.tokenizer import load_tokenizer
from tests.unit.tokenizer.byte_bpe import HOSTILE, write_folder
from tests.unit.tokenizer.samples import LINES

TEXTS = (*LINES, *HOSTILE, "Cafe\u0301 e\u0301")
BAD = b'{"text": 1}\n'


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "tokenizer")


def run(tmp_path, folder, **options):
    rows = [json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n" for text in TEXTS]
    (tmp_path / "x.jsonl").write_bytes(b"".join(rows) + BAD)
    config = PreprocessConfig(
        inputs=(str(tmp_path / "x.jsonl"),),
        tokenizer=str(folder),
        output_prefix=str(tmp_path / "out" / "data"),
        max_bad_rate=0.5,
        **options,
    )
    return preprocess(config), len(b"".join(rows))


def test_each_document_ends_once_whatever_its_text_spells(tmp_path, folder):
    sidecar, size = run(tmp_path, folder)
    tokenizer = load_tokenizer(folder)
    indexed = IndexedDataset(tmp_path / "out" / "data")
    assert (sidecar.eod_id, sidecar.tokenizer_sha256) == (400, tokenizer.identity)
    assert [ids.tolist() for ids in indexed] == [[*tokenizer.encode(t), 400] for t in TEXTS]
    structure = [index for index in indexed.tokens.tolist() if tokenizer.is_control(index)]
    assert structure == [400] * len(TEXTS)
    # Normalisation shortens a text, but offsets are those of the file.
    listed = (tmp_path / "out" / "data.quarantine.jsonl").read_text().splitlines()
    assert [json.loads(row)["byte"] for row in listed] == [size]
    assert all(
        finding.verdict != "WRONG" for finding in verify_prefix(str(tmp_path / "out" / "data"))
    )


def test_workers_give_the_same_bytes(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(row_block, "BLOCK_BYTES", 300)
    outputs = []
    for workers in (1, 2):
        run(tmp_path, folder, workers=workers, overwrite=True)
        outputs.append({p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()})
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_view_is_readable(tmp_path, folder, layout):
    run(tmp_path, folder)
    stream = io.StringIO()
    prefix = open_prefix(str(tmp_path / "out" / "data"))
    view = view_document(prefix, 1)
    print_view(view, load_tokenizer(folder), Console(file=stream, width=200), layout=layout)
    shown = stream.getvalue()
    assert "<|endoftext|>" in shown and "体温" in shown
    assert not any(mark in shown for mark in "\u0120\u010a\u00e6\u00e5")
    assert np.isin(400, prefix.indexed.tokens)
