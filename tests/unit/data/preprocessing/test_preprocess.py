"""Corpora become token files, completely or not at all, byte-identical for any worker count."""

import json
import os

import numpy as np
import pytest
import sentencepiece

from megatron_chimed.data.datasets.indexed import IndexedDataset
from megatron_chimed.data.preprocessing.plan import PreprocessConfig
from megatron_chimed.data.preprocessing.preprocess import preprocess
from megatron_chimed.data.reading import row_block
from megatron_chimed.errors import ConfigError, DataError, OutputError
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
    monkeypatch.setattr(row_block, "BLOCK_BYTES", 3000)  # the parent alone reads
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
    extra.write_bytes(b'{"text": ""}\n{"text": 3}\n{"text": "x"}\n{"text": " \\n "}\n')
    sidecar = run(tmp_path, [corpus, other, extra], model, max_bad_rate=0.5)
    rows = [(s.rows, s.documents, s.examples, s.empty, s.quarantined) for s in sidecar.sources]
    assert rows == [(300, (0, 300), 300, 0, 0), (3, (300, 303), 3, 0, 0), (4, (303, 304), 3, 2, 1)]
    indexed = IndexedDataset(tmp_path / "out" / "data")
    for source in sidecar.sources:
        assert source.tokens == indexed.document_lengths(*source.documents).sum()


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


def test_a_file_whose_name_is_no_utf8_goes_through(tmp_path, model):
    """As archives from systems with another character set leave them."""
    path = os.fsdecode(os.fsencode(tmp_path) + "/病历.txt".encode("gbk"))
    with open(path, "wb") as stream:
        stream.write(b"one\n\xff\n")
    run(tmp_path, [path], model, max_bad_rate=0.5)
    sidecar = IndexedDataset(tmp_path / "out" / "data").sidecar
    assert sidecar.sources[0].file == path
    entry = json.loads((tmp_path / "out" / "data.quarantine.jsonl").read_text(encoding="utf-8"))
    assert entry["file"] == path


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stage": "rl"}, "--stage 'rl' is none of pretrain, sft, preference"),
        ({"stage": "sft"}, "--stage sft needs --template: ziya, chimed, zhongjing or a YAML"),
        ({"stage": "sft", "template": "x"}, "template 'x' is none of ziya"),
        ({"template": "ziya"}, "--template has no effect with --stage pretrain"),
        ({"seq_length": 10}, "--seq-length has no effect with --stage pretrain"),
        ({"targets": "last"}, "--targets has no effect with --stage pretrain"),
        ({"truncation": "cut"}, "--truncation has no effect with --stage pretrain"),
        (
            {"stage": "preference", "template": "ziya", "targets": "last"},
            "--targets has no effect with --stage preference",
        ),
        (
            {"stage": "sft", "template": "ziya", "append_eod": False},
            "--no-append-eod has no effect with --stage sft",
        ),
        (
            {"stage": "sft", "template": "ziya", "truncation": "cut"},
            "--truncation cut has no effect without --seq-length",
        ),
        ({"stage": "sft", "template": "ziya", "seq_length": 0}, "--seq-length is 0"),
        ({"targets": "none"}, "--targets 'none' is none of answers, last, all"),
        ({"truncation": "left"}, "--truncation 'left' is none of drop, cut"),
        ({"max_row_bytes": 0}, "--max-row-bytes is 0"),
        ({"workers": 0}, "--workers is 0"),
        ({"max_bad_rate": 1.0}, "--max-bad-rate is 1.0"),
        ({"max_bad_rate": -0.1}, "--max-bad-rate is -0.1"),
        ({"max_bad_rate": float("nan")}, "--max-bad-rate is nan"),
        ({"format": "csv"}, "--format 'csv' is none of auto, "),
    ],
)
def test_wrong_settings_are_refused(tmp_path, corpus, model, options, message):
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, [corpus], model, **options)
    assert not (tmp_path / "out").exists()


def test_missing_files_are_named_before_anything_is_written(tmp_path, corpus, model):
    with pytest.raises(ConfigError, match="'.*nowhere.txt' is not a file or folder"):
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


def test_a_prefix_that_is_a_folder_is_refused(tmp_path):
    for prefix in ("dir/", "dir/..", "."):
        with pytest.raises(ConfigError, match="names a folder.*Add a name: '.*/corpus'"):
            PreprocessConfig(inputs=("a",), tokenizer="t", output_prefix=prefix)


def test_a_prefix_that_cannot_be_made_is_an_output_error(tmp_path, corpus, model):
    config = PreprocessConfig(
        inputs=(str(corpus),), tokenizer=str(model), output_prefix="/proc/nowhere/data"
    )
    with pytest.raises(OutputError, match="/proc"):
        preprocess(config)


def test_an_output_within_the_folder_of_the_input_is_no_input(tmp_path, model):
    (tmp_path / "a.jsonl").write_text('{"text": "fever"}\n{bad\n')
    config = PreprocessConfig(
        inputs=(str(tmp_path),),
        tokenizer=str(model),
        output_prefix=str(tmp_path / "data"),
        max_bad_rate=0.6,
        overwrite=True,
    )
    first, second = preprocess(config), preprocess(config)
    assert (tmp_path / "data.quarantine.jsonl").exists()
    assert first == second and len(second.sources) == 1
