"""Corpora become token files: all of them or nothing, the same bytes for any number of workers."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import sentencepiece

from megatron_chimed.data import blocks, encoding
from megatron_chimed.data.encoding import Recipe, encode_blocks
from megatron_chimed.data.indexed import IndexedDataset
from megatron_chimed.data.preprocess import PreprocessConfig, preprocess
from megatron_chimed.errors import ConfigError, DataError, OutputError, ParallelError
from megatron_chimed.tokenizer import load_tokenizer
from tests.unit.tokenizer.samples import LINES, train_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tokenizer.model"
    path.write_bytes(train_model())
    return path


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    rows = [{"text": f"{number}. {LINES[number % 5]}"} for number in range(300)]
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n")
    return path


def run(tmp_path, inputs, model, **options):
    config = PreprocessConfig(
        inputs=tuple(map(str, inputs)),
        tokenizer=str(model),
        output_prefix=str(tmp_path / "out" / "data"),
        **options,
    )
    return preprocess(config)


def test_documents_are_the_texts_with_their_end(tmp_path, corpus, model):
    sidecar = run(tmp_path, [corpus], model)
    indexed = IndexedDataset(tmp_path / "out" / "data")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    texts = [json.loads(line)["text"] for line in corpus.read_text().splitlines()]
    assert [ids.tolist() for ids in indexed] == [[*processor.encode(t), 2] for t in texts]
    assert indexed.dtype == np.uint16
    assert indexed.sidecar == sidecar
    assert (sidecar.documents, sidecar.tokens) == (300, len(indexed.tokens))
    assert sidecar.max_token_id == indexed.tokens.max()
    assert (sidecar.eod_id, sidecar.vocab_size) == (2, 400)
    assert sidecar.tokenizer_sha256 == load_tokenizer(model).identity
    assert sidecar.sources[0].bytes == corpus.stat().st_size


def test_the_end_of_document_can_be_left_out(tmp_path, corpus, model):
    sidecar = run(tmp_path, [corpus], model, append_eod=False)
    assert sidecar.eod_id is None
    assert 2 not in IndexedDataset(tmp_path / "out" / "data").tokens


def test_any_number_of_workers_gives_the_same_bytes(tmp_path, corpus, model, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 3000)
    outputs = []
    for workers in (1, 2, 3):
        run(tmp_path, [corpus, corpus], model, workers=workers, overwrite=True)
        files = sorted((tmp_path / "out").iterdir())
        outputs.append({path.name: path.read_bytes() for path in files})
    assert set(outputs[0]) == {"data.bin", "data.idx", "data.meta.json"}
    assert outputs[0] == outputs[1] == outputs[2]


def test_every_source_has_its_counts_and_documents(tmp_path, corpus, model):
    other = tmp_path / "other.txt"
    other.write_bytes(b"one\n\n   \ntwo\n{bad\n")
    extra = tmp_path / "extra.jsonl"
    extra.write_bytes(b'{"text": ""}\n{"text": 3}\n{"text": "x"}\n')
    sidecar = run(tmp_path, [corpus, other, extra], model, max_bad_rate=0.5)
    rows = [(s.rows, s.documents, s.blank, s.empty, s.quarantined) for s in sidecar.sources]
    assert rows == [(300, (0, 300), 0, 0, 0), (3, (300, 303), 2, 0, 0), (3, (303, 304), 0, 1, 1)]


def test_a_bad_row_is_an_error_that_leaves_nothing(tmp_path, corpus, model):
    with open(corpus, "a") as stream:
        stream.write('{"text": 1}\n')
    size = corpus.stat().st_size - 12
    with pytest.raises(DataError) as caught:
        run(tmp_path, [corpus], model, workers=2)
    assert f"corpus.jsonl:301:{size} (line:byte): 'text' is of type int" in str(caught.value)
    assert "--max-bad-rate" in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_bad_rows_within_the_rate_are_listed_with_their_place(tmp_path, corpus, model):
    content = corpus.read_bytes()
    corpus.write_bytes(b"{\n" + content + b"\xff\n")
    sidecar = run(tmp_path, [corpus], model, max_bad_rate=0.01)
    assert (sidecar.documents, sidecar.sources[0].rows) == (300, 302)
    assert sidecar.sources[0].quarantined == 2
    listed = (tmp_path / "out" / "data.quarantine.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in listed]
    assert [(r["file"], r["line"], r["byte"]) for r in rows] == [
        (str(corpus), 1, 0),
        (str(corpus), 302, 2 + len(content)),
    ]
    assert "malformed JSON" in rows[0]["reason"] and "invalid UTF-8" in rows[1]["reason"]


def test_too_many_bad_rows_are_an_error_that_keeps_only_the_list(tmp_path, corpus, model):
    corpus.write_bytes(b"{\n" * 4 + corpus.read_bytes())
    with pytest.raises(DataError, match=r"4 of 304 rows are malformed, more than --max-bad-rate 0"):
        run(tmp_path, [corpus], model, max_bad_rate=0.01)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["data.quarantine.jsonl"]


def test_an_old_list_of_bad_rows_does_not_outlive_a_clean_run(tmp_path, corpus, model):
    clean = corpus.read_bytes()
    corpus.write_bytes(b"{\n" + clean)
    run(tmp_path, [corpus], model, max_bad_rate=0.5)
    corpus.write_bytes(clean)
    run(tmp_path, [corpus], model, max_bad_rate=0.5, overwrite=True)
    assert not (tmp_path / "out" / "data.quarantine.jsonl").exists()


@pytest.mark.parametrize("content", [b"", b"\n \n", b'{"text": " "}\n'])
def test_no_document_at_all_is_an_error(tmp_path, model, content):
    path = tmp_path / "empty.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"no document in .*empty\.jsonl"):
        run(tmp_path, [path], model)
    assert list((tmp_path / "out").iterdir()) == []


def test_existing_output_stays_unless_told_otherwise(tmp_path, corpus, model):
    run(tmp_path, [corpus], model)
    before = (tmp_path / "out" / "data.idx").read_bytes()
    with pytest.raises(OutputError, match=r"data\.idx exists.*--overwrite"):
        run(tmp_path, [corpus], model)
    corpus.write_bytes(b"{bad")
    with pytest.raises(DataError):
        run(tmp_path, [corpus], model, overwrite=True)
    assert (tmp_path / "out" / "data.idx").read_bytes() == before
    IndexedDataset(tmp_path / "out" / "data")


def _kill_this_process(recipe, block):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_an_error_not_a_hang(tmp_path, corpus, model, monkeypatch):
    monkeypatch.setattr(encoding, "_encode_block", _kill_this_process)
    with pytest.raises(ParallelError, match="one of 2 worker processes was killed.*--workers"):
        run(tmp_path, [corpus], model, workers=2)
    assert list((tmp_path / "out").iterdir()) == []


ENDLESS = """
import itertools, sys
from megatron_chimed.data.blocks import Block
from megatron_chimed.data.encoding import Recipe, encode_blocks
recipe = Recipe(tokenizer=sys.argv[1], formats=("text",), text_key="", append_eod=True)
block = Block(file=0, first_line=1, offset=0, data=b"x")
for _ in encode_blocks(itertools.repeat(block), recipe, workers=2):
    print("encoded", flush=True)
"""


def test_workers_end_with_a_parent_that_was_killed(model):
    """They hold its standard output open, so its end is theirs."""
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(model)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "encoded\n"
    finally:
        process.kill()
    process.communicate(timeout=30)


def test_workers_are_given_a_bounded_amount_of_work(corpus, model, monkeypatch):
    """Else a fast reader and a slow writer would fill the memory."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 500)
    read = []

    def counted():
        for block in blocks.iter_blocks([corpus]):
            read.append(block)
            yield block

    recipe = Recipe(tokenizer=str(model), formats=("jsonl",), text_key="text", append_eod=True)
    encoded = encode_blocks(counted(), recipe, workers=2)
    next(encoded)
    assert len(read) == 2 * encoding.BLOCKS_PER_WORKER
    encoded.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stage": "sft"}, "--stage 'sft' is none of pretrain"),
        ({"workers": 0}, "--workers is 0"),
        ({"max_bad_rate": 1.0}, "--max-bad-rate is 1.0"),
        ({"max_bad_rate": -0.1}, "--max-bad-rate is -0.1"),
        ({"max_bad_rate": float("nan")}, "--max-bad-rate is nan"),
        ({"format": "csv"}, "--format 'csv' is none of"),
    ],
)
def test_wrong_settings_are_refused(tmp_path, corpus, model, options, message):
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, [corpus], model, **options)
    assert not (tmp_path / "out").exists()


def test_missing_files_are_named_before_anything_is_written(tmp_path, corpus, model):
    with pytest.raises(ConfigError, match="--input '.*nowhere.txt' is no file"):
        run(tmp_path, [corpus, tmp_path / "nowhere.txt"], model)
    with pytest.raises(ConfigError, match="tokenizer '.*nowhere' does not exist"):
        run(tmp_path, [corpus], tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="--input names no file"):
        run(tmp_path, [], model)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["llama2_tokenizer.model", "chinese_sp.model"])
def test_a_real_text_goes_through_and_megatron_reads_it(tmp_path, real_data, name):
    from megatron.core.datasets.indexed_dataset import IndexedDataset as StockDataset

    sidecar = run(tmp_path, [real_data / "fever.txt"], real_data / name, workers=2)
    lines = (real_data / "fever.txt").read_text(encoding="utf-8").split("\n")
    texts = [line for line in lines if line.strip()]
    processor = sentencepiece.SentencePieceProcessor(model_file=str(real_data / name))
    stock = StockDataset(str(tmp_path / "out" / "data"))
    assert len(stock) == sidecar.documents == len(texts)
    for index, text in enumerate(texts):
        assert stock[index].tolist() == [*processor.encode(text), processor.eos_id()]
