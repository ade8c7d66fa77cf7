"""Malformed rows: all are counted before a rate is advised, and only advice that helps is given."""

import json

import pytest

from megatron_chimed.data.datasets.indexed import IndexedDataset
from megatron_chimed.data.preprocessing.plan import PreprocessConfig
from megatron_chimed.data.preprocessing.preprocess import preprocess
from megatron_chimed.data.preprocessing.quarantine import needed_rate
from megatron_chimed.data.preprocessing.summary import summarize
from megatron_chimed.data.reading import row_block
from megatron_chimed.errors import DataError
from megatron_chimed.tokenizer import load_tokenizer
from tests.unit.tokenizer.samples import LINES, train_model

GOOD = json.dumps({"text": LINES[0]}, ensure_ascii=False) + "\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tokenizer.model"
    path.write_bytes(train_model())
    return path


def config(tmp_path, model, **options):
    return PreprocessConfig(
        inputs=(str(tmp_path / "x.jsonl"),),
        tokenizer=str(model),
        output_prefix=str(tmp_path / "out" / "data"),
        **options,
    )


def failure(tmp_path, model, **options):
    with pytest.raises(DataError) as caught:
        preprocess(config(tmp_path, model, **options))
    return str(caught.value)


@pytest.mark.parametrize("workers", [1, 2])
def test_all_bad_rows_are_counted_before_a_rate_is_advised(tmp_path, model, monkeypatch, workers):
    monkeypatch.setattr(row_block, "BLOCK_BYTES", 2000)
    rows = ['{"text": 1}\n' if number in (10, 500, 990) else GOOD for number in range(1000)]
    rows[700] = "{\n"
    (tmp_path / "x.jsonl").write_text("".join(rows))
    message = failure(tmp_path, model, workers=workers)
    assert "x.jsonl:11:" in message and "4 of 1000 rows are malformed" in message
    assert "3 x 'text' is of type int" in message and "1 x malformed JSON" in message
    assert "pass --max-bad-rate 0.004 to skip" in message
    assert list((tmp_path / "out").iterdir()) == []
    assert preprocess(config(tmp_path, model, max_bad_rate=0.004)).documents == 996


def test_a_rate_is_advised_that_is_enough_and_below_one():
    for bad, rows in ((1, 3), (1, 81), (4, 304), (99, 100), (999, 1000), (1, 10**6)):
        rate = float(needed_rate(bad, rows))
        assert bad <= rate * rows and bad / rows <= rate < 1.0


def test_the_wrong_stage_is_not_answered_with_a_rate(tmp_path, model):
    (tmp_path / "x.jsonl").write_text(GOOD * 20)
    message = failure(tmp_path, model, stage="sft", template="ziya")
    assert "use --stage pretrain" in message and "20 of the 20 rows" in message
    assert "--max-bad-rate" not in message


def test_a_reason_that_says_what_to_do_is_the_only_advice(tmp_path, model):
    row = {"question": "q", "answer": "a", "label": False}
    (tmp_path / "x.jsonl").write_text(json.dumps(row) * 1 + "\n" + json.dumps(row) + "\n")
    message = failure(tmp_path, model, stage="sft", template="ziya")
    assert "--keep-labels good learns" in message and "Check --stage" not in message
    assert message.endswith("x.jsonl cannot be used.")


def test_all_reasons_of_a_file_that_cannot_be_used_are_counted(tmp_path, model):
    (tmp_path / "x.jsonl").write_text('{"text": 1}\n{"text": null}\n{"text": 2}\n')
    message = failure(tmp_path, model, format="text")
    assert "(2 x 'text' is of type int, not a text; 1 x " in message
    assert message.count("Check --stage, --format") == 1


def test_a_file_of_another_kind_is_not_answered_with_a_rate(tmp_path, model):
    (tmp_path / "x.jsonl").write_text("plain text\n" * 20 + GOOD)
    message = failure(tmp_path, model)
    assert "20 of the 21 rows" in message and "Check --stage, --format, --columns" in message
    assert "--max-bad-rate" not in message
    assert "--max-bad-rate" not in failure(tmp_path, model, max_bad_rate=0.01)


def test_counting_stops_where_no_row_of_many_can_be_used(tmp_path, model, monkeypatch):
    monkeypatch.setattr(row_block, "BLOCK_BYTES", 1 << 14)
    (tmp_path / "x.jsonl").write_text("plain text\n" * 9000)
    message = failure(tmp_path, model)
    assert " rows of " in message and "9,000 of the" not in message


def test_white_space_is_left_out_or_kept_as_by_megatron(tmp_path, model):
    texts = ["  ", "\u3000", "", LINES[0]]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    plain = config(tmp_path, model)
    sidecar = preprocess(plain)
    assert (sidecar.documents, sidecar.sources[0].empty) == (1, 3)
    assert "3 texts that are empty or white space alone" in summarize(plain, sidecar, 1.0)
    kept = config(tmp_path, model, keep_blank_texts=True, overwrite=True)
    sidecar = preprocess(kept)
    tokenizer = load_tokenizer(model)
    wanted = [[*ids, tokenizer.eos_id] for ids in map(tokenizer.encode, texts) if ids]
    documents = [ids.tolist() for ids in IndexedDataset(tmp_path / "out" / "data")]
    assert documents == wanted and len(wanted) > 1
    assert "--keep-blank-texts" in sidecar.command
    assert "white space alone" not in summarize(kept, sidecar, 1.0)
