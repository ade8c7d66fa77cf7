"""What keys of a row become in the files: unread keys, judged answers, masks, reasoning, tools."""

import dataclasses
import json

import numpy as np
import pytest

from megatron_chimed.data.cleaning.config import CleaningConfig
from megatron_chimed.data.cleaning.exam_items import read_exams
from megatron_chimed.data.datasets.config import DataConfig, build_datasets
from megatron_chimed.data.datasets.indexed import IndexedDataset
from megatron_chimed.data.datasets.preference import read_rankings
from megatron_chimed.data.datasets.prefix import open_prefix
from megatron_chimed.data.datasets.sidecar import read_sidecar
from megatron_chimed.data.inspection.ranking_verification import check_rankings
from megatron_chimed.data.preprocessing import preprocess as preprocessing
from megatron_chimed.data.preprocessing.block_encoder import RowCounts
from megatron_chimed.data.preprocessing.journal import WorkFolder
from megatron_chimed.data.preprocessing.merging import MergeConfig, merge
from megatron_chimed.data.preprocessing.plan import PreprocessConfig
from megatron_chimed.data.preprocessing.preprocess import preprocess
from megatron_chimed.data.preprocessing.summary import summarize
from megatron_chimed.data.reading import row_block
from megatron_chimed.data.templates import load_template
from megatron_chimed.errors import ConfigError, DataError
from megatron_chimed.tokenizer import load_tokenizer
from tests.unit.tokenizer.samples import LINES, train_model

ASK = "发热怎么办？"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tokenizer.model"
    path.write_bytes(train_model())
    return path


def config_of(folder, model, rows, **options):
    path = folder / "x.jsonl"
    if rows is not None:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    options = {"stage": "sft", "template": "ziya", "output": "out", **options}
    output = str(folder / options.pop("output") / "data")
    return PreprocessConfig(
        inputs=(str(path),), tokenizer=str(model), output_prefix=output, **options
    )


def run(folder, model, rows, **options):
    return preprocess(config_of(folder, model, rows, **options))


def learned(folder, output="out"):
    """The supervised ids of each document, as lists."""
    tokens, mask = (IndexedDataset(folder / output / name) for name in ("data", "data.mask"))
    return [ids[np.asarray(flags) == 1].tolist() for ids, flags in zip(tokens, mask, strict=True)]


def numbered(count):
    keys = ("mood", "weather", "心情")
    return [{"question": ASK, "answer": LINES[n % 5], keys[n % 3]: n} for n in range(count)]


UNREAD = [
    {"name": "mood", "rows": 14, "example": "0"},
    {"name": "weather", "rows": 13, "example": "1"},
    {"name": "心情", "rows": 13, "example": "2"},
]


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(row_block, "BLOCK_BYTES", 300)
    monkeypatch.setattr(preprocessing, "JOURNAL_SECONDS", 0.0)


@pytest.mark.parametrize("workers", [1, 2])
def test_unread_keys_are_in_the_sidecar_and_in_the_output(tmp_path, model, small_blocks, workers):
    config = config_of(tmp_path, model, numbered(40), workers=workers)
    sidecar = preprocess(config)
    assert list(sidecar.sources[0].unread_keys) == UNREAD
    assert read_sidecar(tmp_path / "out" / "data.meta.json") == sidecar
    assert "key 'mood' of 14 rows is not read, such as 0" in summarize(config, sidecar, 1.0)


def test_unread_keys_survive_a_resume_and_a_merge(tmp_path, model, small_blocks):
    config, left = config_of(tmp_path, model, numbered(40)), [5]

    def stop(progress):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        preprocess(config, stop)
    assert list(preprocess(config).sources[0].unread_keys) == UNREAD
    again = run(tmp_path, model, None, output="again")
    prefixes = tuple(str(tmp_path / name / "data") for name in ("out", "again"))
    merged = merge(MergeConfig(inputs=prefixes, output_prefix=str(tmp_path / "all")))
    assert [list(source.unread_keys) for source in merged.sources] == [UNREAD, UNREAD]
    assert again.sources[0].unread_keys == merged.sources[1].unread_keys


def test_strict_keys_makes_an_unread_key_an_error(tmp_path, model):
    with pytest.raises(DataError, match=r"x\.jsonl:1:0 .*key 'mood' is not read"):
        run(tmp_path, model, numbered(3), strict_keys=True)


def test_sidecars_and_journals_of_earlier_versions_load(tmp_path, model):
    run(tmp_path, model, numbered(3)[:1])
    path = tmp_path / "out" / "data.meta.json"
    value = json.loads(path.read_text())
    del value["sidecar_sha256"]
    for source in value["sources"]:
        del source["unread_keys"]
    path.write_text(json.dumps(value))
    assert read_sidecar(path).sources[0].unread_keys == ()
    counts = RowCounts(rows=3).to_json()
    del counts["unread"]
    assert RowCounts.from_json(counts).unread.to_json() == []


def test_a_run_that_an_earlier_version_left_starts_afresh(tmp_path, model, small_blocks):
    config, said = config_of(tmp_path, model, numbered(3)), []
    with WorkFolder(config.output_prefix) as folder:
        folder.keep = True
        journal = {"fingerprint": {"journal": 1, "program": "0.1.0"}, "state": {"phase": "running"}}
        (folder.path / "journal.json").write_text(json.dumps(journal))
    assert preprocess(config, say=said.append).documents == 3
    assert "program" in said[0] and "starts from scratch" in said[0]


KTO = [
    {"prompt": ASK, "response": LINES[0], "label": True},
    {"prompt": ASK, "response": LINES[1], "label": False},
]


@pytest.mark.parametrize("stage", ["sft", "pretrain"])
def test_judged_answers_are_learned_only_when_asked_and_only_good_ones(tmp_path, model, stage):
    template = {"sft": "ziya", "pretrain": None}[stage]
    with pytest.raises(DataError, match=r"an answer that is judged .*--keep-labels good"):
        run(tmp_path, model, KTO, stage=stage, template=template)
    sidecar = run(tmp_path, model, KTO, stage=stage, template=template, keep_labels="good")
    assert sidecar.documents == 1 and sidecar.sources[0].removed == {"bad_answer": 1}
    tokenizer = load_tokenizer(model)
    [document] = IndexedDataset(tmp_path / "out" / "data")
    assert LINES[0] in tokenizer.decode(document)


def test_the_flag_for_judged_answers_is_checked(tmp_path, model):
    with pytest.raises(ConfigError, match="--keep-labels 'bad' is none of good"):
        config_of(tmp_path, model, KTO, keep_labels="bad")
    with pytest.raises(ConfigError, match="--keep-labels has no effect with --stage preference"):
        config_of(tmp_path, model, KTO, keep_labels="good", stage="preference")


@pytest.mark.parametrize("deduplicate", ["off", "exact"])
def test_judged_answers_are_groups_of_one_with_a_label(tmp_path, model, deduplicate):
    pair = {"prompt": ASK, "chosen": LINES[2], "rejected": LINES[3]}
    rows = [*KTO, {**KTO[0], "label": False, "response": LINES[4]}]
    cleaning = CleaningConfig(deduplicate=deduplicate, normalize=deduplicate == "exact")
    sidecar = run(tmp_path, model, rows, stage="preference", cleaning=cleaning)
    path = tmp_path / "out" / "data.rank.json"
    value = json.loads(path.read_text())
    assert (value["format_version"], value["labels"]) == (2, [True, False, False])
    assert value["ranks"] == [[0], [1], [1]] and sidecar.sequences == 3
    indexed = IndexedDataset(tmp_path / "out" / "data.ranked")
    rankings = read_rankings(path, indexed)
    assert rankings.is_unpaired.all() and rankings.ranks.tolist() == [0, 1, 1]
    run(tmp_path, model, [pair], stage="preference", output="pairs")
    assert "labels" not in json.loads((tmp_path / "pairs" / "data.rank.json").read_text())
    prefixes = tuple(str(tmp_path / name / "data") for name in ("out", "pairs"))
    merge(MergeConfig(inputs=prefixes, output_prefix=str(tmp_path / "all")))
    merged = json.loads((tmp_path / "all.rank.json").read_text())
    assert merged["labels"] == [True, False, False, None] and merged["ranks"][3] == [0, 1]


def test_readers_know_judged_answers_and_training_refuses_them(tmp_path, model):
    run(tmp_path, model, KTO, stage="preference")
    tokenizer = load_tokenizer(model)
    with pytest.raises(ConfigError, match=r"2 of 2 groups hold one answer with a label .*KTO"):
        build_datasets(
            DataConfig(train=str(tmp_path / "out" / "data"), seq_length=200),
            stage="preference",
            vocab_size=tokenizer.vocab_size,
            tokenizer_identity=tokenizer.identity,
            eod_id=2,
            seed=0,
        )
    prefix = open_prefix(str(tmp_path / "out" / "data"))
    [finding, *_] = check_rankings(prefix, [])
    assert finding.verdict == "ok" and "2 judged answers (1 good)" in finding.detail
    path = tmp_path / "out" / "data.rank.json"
    path.write_text(path.read_text().replace("[true, false]", "[false, true]"))
    with pytest.raises(DataError, match="label False of a group with ranks"):
        read_rankings(path, prefix.indexed)


TALK = [
    {"role": "user", "content": ASK},
    {"role": "assistant", "content": LINES[0], "weight": 0},
    {"role": "user", "content": "再问"},
    {"role": "assistant", "content": LINES[1]},
]


@pytest.mark.parametrize("targets", ["answers", "last", "all"])
def test_a_masked_answer_gets_no_loss(tmp_path, model, targets):
    sidecar = run(tmp_path, model, [{"messages": TALK}], targets=targets)
    tokenizer = load_tokenizer(model)
    [ids] = learned(tmp_path)
    text = tokenizer.decode(ids)
    assert LINES[0] not in text and LINES[1] in text and sidecar.end_tokens == 1
    assert ("再问" in text) == (targets == "all")


def test_a_conversation_whose_last_answer_is_masked_is_dropped_by_targets_last(tmp_path, model):
    rows = [{"messages": [*TALK[2:], *TALK[:2]]}, {"messages": TALK[2:]}]
    sidecar = run(tmp_path, model, rows, targets="last")
    assert sidecar.sources[0].removed == {"not_learned": 1}


def test_masks_are_refused_where_all_is_learned(tmp_path, model):
    with pytest.raises(DataError, match="pretraining learns all: use --stage sft"):
        run(tmp_path, model, [{"messages": TALK}], stage="pretrain", template=None)


THINKING = {"question": ASK, "answer": LINES[0], "Complex_CoT": LINES[1]}
THINK = 'name: think\nprompt: "Q: {question}\\nA:"\nthink: "<think>{reasoning}</think>\\n"\n'


def test_reasoning_becomes_the_part_that_a_template_has_for_it(tmp_path, model):
    with pytest.raises(DataError, match="reasoning before an answer.*--drop-reasoning"):
        run(tmp_path, model, [THINKING])
    run(tmp_path, model, [THINKING], drop_reasoning=True, output="dropped")
    tokenizer = load_tokenizer(model)
    assert learned(tmp_path, "dropped") == [[*tokenizer.encode(LINES[0]), 2]]
    path = tmp_path / "think.yaml"
    path.write_text(THINK)
    run(tmp_path, model, [THINKING], template=str(path))
    expected = tokenizer.encode(f"<think>{LINES[1]}</think>\n{LINES[0]}")
    assert learned(tmp_path) == [[*expected, 2]]


def test_a_template_without_a_part_for_reasoning_keeps_its_identity():
    identity = "0c8e6bf5"
    template = load_template("ziya")
    assert dataclasses.replace(template, think="<t>{reasoning}").identity != template.identity
    assert template.identity.startswith(identity)
    with pytest.raises(ConfigError, match="think is '<t>'"):
        dataclasses.replace(template, think="<t>")


def test_tools_are_refused_by_templates_without_turns_for_them(tmp_path, model):
    row = {"question": ASK, "answer": LINES[0], "tools": [{"name": "f"}]}
    with pytest.raises(DataError, match="calls tools, for which template 'ziya' has no turns"):
        run(tmp_path, model, [row])
    with pytest.raises(DataError, match="calls tools, for which a text without template has no"):
        run(tmp_path, model, [row], stage="pretrain", template=None)


@pytest.mark.parametrize("choices", [["阿司匹林", "青霉素"], {"A": "阿司匹林", "B": "青霉素"}])
def test_test_files_of_any_exam_shape_have_their_questions(tmp_path, choices):
    path = tmp_path / "exam.jsonl"
    row = {"question": "首选药", "options": choices, "answer": "A"}
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n")
    [(_, [item])] = read_exams([path])
    assert item.question == "首选药" and "青霉素" in item.choices


def test_ignored_keys_are_as_if_they_were_not_there(tmp_path, model):
    rows = [{"question": ASK, "answer": line, "context": "x", "rejected": "y"} for line in LINES]
    with pytest.raises(DataError, match="context|rejected"):
        run(tmp_path, model, rows)
    sidecar = run(tmp_path, model, rows, ignore_keys=("context", "rejected"))
    assert sidecar.documents == len(rows) and not sidecar.sources[0].unread_keys


@pytest.mark.parametrize("layout", ["pair", "judged"])
def test_reasoning_before_a_compared_answer_is_rendered_by_the_template(tmp_path, model, layout):
    path = tmp_path / "think.yaml"
    path.write_text(THINK)
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": LINES[0]}]
    talk[1]["reasoning_content"] = LINES[1]
    row = {"chosen": talk, "rejected": [talk[0], {"role": "assistant", "content": LINES[2]}]}
    if layout == "judged":
        row = {"messages": talk, "label": True}
    run(tmp_path, model, [row], stage="preference", template=str(path))
    tokens = IndexedDataset(tmp_path / "out" / "data.ranked")
    expected = load_tokenizer(model).encode(f"<think>{LINES[1]}</think>\n{LINES[0]}")
    assert tokens[0].tolist()[-len(expected) - 1 : -1] == list(expected)
    with pytest.raises(DataError, match="template 'ziya' has no part"):
        run(tmp_path, model, [row], stage="preference", output="ziya")
    run(tmp_path, model, [row], stage="preference", output="plain", drop_reasoning=True)
    assert len(IndexedDataset(tmp_path / "plain" / "data.ranked")[0]) < len(tokens[0])
