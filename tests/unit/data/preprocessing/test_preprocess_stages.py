"""Conversations and rankings become token files with masks and ranks; every row is counted."""

import json

import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset as StockDataset

from megatron_chimed.data.cleaning.config import CleaningConfig
from megatron_chimed.data.datasets.config import DataConfig, build_datasets
from megatron_chimed.data.datasets.indexed import IndexedDataset
from megatron_chimed.data.datasets.sidecar import read_sidecar
from megatron_chimed.data.preprocessing.plan import PreprocessConfig
from megatron_chimed.data.preprocessing.preprocess import preprocess
from megatron_chimed.data.reading import row_block
from megatron_chimed.errors import DataError
from megatron_chimed.tokenizer import load_tokenizer
from tests.unit.tokenizer.samples import LINES, train_model

ASK = "发热怎么办？"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tokenizer.model"
    path.write_bytes(train_model())
    return path


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def run(tmp_path, path, model, **options):
    options = {"stage": "sft", "template": "chimed", **options}
    config = PreprocessConfig(
        inputs=(str(path),),
        tokenizer=str(model),
        output_prefix=str(tmp_path / "out" / "data"),
        **options,
    )
    return preprocess(config)


def alpaca(question, answer, history=()):
    return {"instruction": question, "input": "", "output": answer, "history": list(history)}


def test_a_conversation_is_a_document_with_its_answers_masked(tmp_path, model):
    rows = [alpaca(ASK, LINES[0]), alpaca("再问", LINES[1], history=[[ASK, LINES[2]]])]
    sidecar = run(tmp_path, write_rows(tmp_path / "x.jsonl", rows), model)
    tokens = StockDataset(str(tmp_path / "out" / "data"))
    mask = StockDataset(str(tmp_path / "out" / "data.mask"))
    tokenizer = load_tokenizer(model)
    assert len(tokens) == len(mask) == sidecar.documents == 2
    learned = tokens[1][mask[1] == 1]
    answers = tokenizer.encode_batch([LINES[2], LINES[1]])
    assert learned.tolist() == [*answers[0], 2, *answers[1], 2]
    shown = tokenizer.decode(tokens[1][mask[1] == 0])
    assert shown.count("[human]:") == 2 and LINES[1] not in shown
    source = sidecar.sources[0]
    assert (source.end_tokens, sidecar.end_tokens) == (3, 3)
    assert sidecar.supervised_tokens == source.supervised_tokens == mask[0].sum() + mask[1].sum()
    assert sidecar.rendering.template == "chimed" and sidecar.eod_id is None
    assert sidecar == read_sidecar(tmp_path / "out" / "data.meta.json")


def test_what_the_length_costs_is_counted(tmp_path, model):
    turn = [ASK, LINES[1]]
    rows = [
        alpaca(ASK, LINES[0]),
        alpaca(ASK, LINES[1], history=[turn] * 4),  # keeps its first turns
        alpaca(ASK * 50, LINES[0]),  # whose question alone is too long
        alpaca(ASK, LINES[1] * 20),
    ]
    path = write_rows(tmp_path / "x.jsonl", rows)
    sidecar = run(tmp_path, path, model, seq_length=120)
    source = sidecar.sources[0]
    assert source.removed == {"too_long": 2} and source.documents == (0, 2)
    assert source.truncated == 1 and source.dropped_turns > 0
    assert source.end_tokens == 1 + 5 - source.dropped_turns
    assert sidecar.rendering.seq_length == 120
    sidecar = run(tmp_path, path, model, seq_length=120, truncation="cut", overwrite=True)
    source = sidecar.sources[0]
    assert source.removed == {"too_long": 1} and source.documents == (0, 3)
    lengths = IndexedDataset(tmp_path / "out" / "data").lengths
    assert max(lengths) == lengths[2] == 120


def test_a_ranking_is_a_document_of_its_candidates(tmp_path, model):
    rows = [
        {"question": ASK, "response_chosen": LINES[0], "response_rejected": LINES[1]},
        {"question": "x", "response_chosen": LINES[2], "response_rejected": LINES[3]},
    ]
    path = write_rows(tmp_path / "x.jsonl", rows)
    sidecar = run(tmp_path, path, model, stage="preference")
    assert (sidecar.documents, sidecar.sequences, sidecar.stage) == (2, 4, "preference")
    tokens = StockDataset(str(tmp_path / "out" / "data.ranked"))
    mask = StockDataset(str(tmp_path / "out" / "data.ranked.mask"))
    ranks = json.loads((tmp_path / "out" / "data.rank.json").read_text())
    assert ranks["ranks"] == [[0, 1], [0, 1]] and ranks["margins"] is None
    tokenizer = load_tokenizer(model)
    for sequence in range(4):
        prompt = ranks["prompt_lengths"][sequence // 2]
        assert mask[sequence].tolist() == [0] * prompt + [1] * (len(mask[sequence]) - prompt)
        answer = [*tokenizer.encode(LINES[sequence]), 2]
        assert tokens[sequence][prompt:].tolist() == answer
        assert (tokens[sequence][:prompt] == tokens[sequence // 2 * 2][:prompt]).all()
    assert sidecar.end_tokens == 4


def test_the_advice_for_long_rankings_works(tmp_path, model):
    """What --seq-length lets through fits a sample of that length, prompts and all."""
    rows = [
        {"question": ASK * n, "response_chosen": LINES[0], "response_rejected": LINES[1]}
        for n in (1, 2, 9)
    ]
    path = write_rows(tmp_path / "x.jsonl", rows)
    run(tmp_path, path, model, stage="preference")
    tokenizer = load_tokenizer(model)

    def open_data(length):
        return build_datasets(
            DataConfig(train=str(tmp_path / "out" / "data"), seq_length=length),
            stage="preference",
            vocab_size=tokenizer.vocab_size,
            tokenizer_identity=tokenizer.identity,
            eod_id=2,
            seed=0,
        )

    lengths = IndexedDataset(tmp_path / "out" / "data.ranked").document_lengths(0, 3)
    limit = int(lengths[1])
    with pytest.raises(DataError, match="1 of 3 documents are longer") as caught:
        open_data(limit)
    advice = f"Set --data.seq_length {lengths[2]}, preprocess with --seq-length {limit}, or leave"
    assert advice in str(caught.value) and str(caught.value).endswith("--data.overlong drop.")
    assert open_data(int(lengths[2])).train.samples_per_epoch == 2
    sidecar = run(tmp_path, path, model, stage="preference", seq_length=limit, overwrite=True)
    assert sidecar.documents == 2 and sidecar.sources[0].removed == {"too_long": 1}
    assert open_data(limit).notes == ()


def test_a_conversation_for_pretraining_is_its_texts_one_per_line(tmp_path, model):
    rows = [alpaca("再问", LINES[1], history=[[ASK, LINES[2]]])]
    path = write_rows(tmp_path / "x.jsonl", rows)
    run(tmp_path, path, model, stage="pretrain", template=None)
    text = "\n".join([ASK, LINES[2], "再问", LINES[1]])
    [document] = IndexedDataset(tmp_path / "out" / "data")
    assert document.tolist() == [*load_tokenizer(model).encode(text), 2]


@pytest.mark.parametrize(
    ("stage", "row", "advice"),
    [
        ("sft", {"text": "x"}, "a plain text, which has no question.*use --stage pretrain"),
        ("preference", {"text": "x"}, "a plain text, which has no answers to compare"),
        ("preference", alpaca("q", "a"), "a conversation, which has no second .*--stage sft"),
        ("sft", "pair", "a ranking of answers, which has several .*--stage preference"),
        ("pretrain", "pair", "a ranking of answers, which holds bad .*--stage preference"),
    ],
)
def test_rows_of_another_stage_are_refused_with_advice(tmp_path, model, stage, row, advice):
    if row == "pair":
        row = {"question": ASK, "response_chosen": "a", "response_rejected": "b"}
    path = write_rows(tmp_path / "x.jsonl", [row])
    template = None if stage == "pretrain" else "ziya"
    with pytest.raises(DataError, match=rf"x\.jsonl:1:0 \(line:byte\): {advice}"):
        run(tmp_path, path, model, stage=stage, template=template)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (alpaca(ASK, ""), "no answer"),
        ({"question": ASK, "response_chosen": "a", "response_rejected": "a"}, "are equal"),
    ],
)
def test_rows_with_nothing_to_learn_are_malformed(tmp_path, model, row, reason):
    stage = "sft" if "output" in row else "preference"
    path = write_rows(tmp_path / "x.jsonl", [row])
    with pytest.raises(DataError, match=rf"x\.jsonl:1:0 \(line:byte\): .*{reason}"):
        run(tmp_path, path, model, stage=stage)


def test_repeated_documents_are_removed_across_blocks_and_files(tmp_path, model, monkeypatch):
    monkeypatch.setattr(row_block, "BLOCK_BYTES", 200)
    rows = [alpaca(ASK, LINES[n % 3]) for n in range(20)] + [alpaca(ASK, LINES[4])]
    path = write_rows(tmp_path / "x.jsonl", rows)
    outputs = []
    for workers in (1, 2):
        cleaning = CleaningConfig(deduplicate="exact")
        sidecar = run(tmp_path, path, model, cleaning=cleaning, workers=workers, overwrite=True)
        source = sidecar.sources[0]
        assert (source.examples, source.documents) == (21, (0, 4))
        assert source.removed == {"exact_duplicate": 17}
        outputs.append({p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()})
    assert outputs[0] == outputs[1]
    indexed = IndexedDataset(tmp_path / "out" / "data")
    assert np.array_equal(source.tokens, len(indexed.tokens))


def test_no_document_says_where_the_rows_went(tmp_path, model):
    path = write_rows(tmp_path / "x.jsonl", [alpaca(ASK * 50, LINES[0])] * 3)
    with pytest.raises(DataError, match=r"of 3 rows, 0 are malformed, 0 empty and 3 removed \(.*"):
        run(tmp_path, path, model, seq_length=10)


@pytest.mark.parametrize(
    ("name", "stage", "documents", "sequences"),
    [
        ("CMtMedQA_test.json", "sft", 1144, 1144),
        ("medical_sft_1K_format.jsonl", "sft", 1000, 1000),
        ("medical_corpus.txt", "sft", 87, 87),
        ("cmmlu_medical/dev", "sft", 35, 35),
        ("dpo_zh_500.jsonl", "preference", 500, 1000),
    ],
)
def test_real_files_go_through_and_megatron_reads_them(
    tmp_path, real_data, name, stage, documents, sequences
):
    tokenizer = load_tokenizer(real_data / "llama2_tokenizer.model")
    sidecar = run(tmp_path, real_data / name, real_data / "llama2_tokenizer.model", stage=stage)
    assert (sidecar.documents, sidecar.sequences) == (documents, sequences)
    infix = ".ranked" if stage == "preference" else ""
    tokens = StockDataset(str(tmp_path / "out" / f"data{infix}"))
    mask = StockDataset(str(tmp_path / "out" / f"data{infix}.mask"))
    assert len(tokens) == len(mask) == sequences
    ends = 0
    for sequence in range(sequences):
        learned = tokens[sequence][mask[sequence] == 1]
        assert len(learned) and learned[-1] == tokenizer.eos_id
        ends += int((learned == tokenizer.eos_id).sum())
    assert ends == sidecar.end_tokens
