"""The list of formats, its page in docs/, and format detection."""

import json
import re
from pathlib import Path

import pytest

from megatron_chimed.data.formats.registry import (
    FORMATS,
    ReadOptions,
    detect_format,
    find_format,
)
from megatron_chimed.data.formats.string_lists import row_of_list
from megatron_chimed.data.reading import expand_inputs, format_of
from megatron_chimed.errors import ConfigError, DataError
from tests.unit.data.formats.rendering import rendered

PAGE = Path(__file__).resolve().parents[4] / "docs" / "formats.md"
SECTION = re.compile(r"^### (\w+)\n.*?^```(json|text)\n(.*?)\n```$", re.MULTILINE | re.DOTALL)


def test_the_page_shows_every_format_in_the_order_of_the_list():
    shown = {
        name: json.loads(sample) if kind == "json" else sample
        for name, kind, sample in SECTION.findall(PAGE.read_text(encoding="utf-8"))
    }
    assert list(shown) == list(FORMATS)
    assert shown == {name: entry.sample for name, entry in FORMATS.items()}


SHAPE = re.compile(
    r"^```(?:json|text)\n(.*?)\n```\n\n```chat\n(.*?)\n```$", re.MULTILINE | re.DOTALL
)


@pytest.mark.parametrize("name", FORMATS)
def test_each_row_on_the_page_is_detected_and_becomes_what_the_page_says(name, tmp_path):
    page = PAGE.read_text(encoding="utf-8")
    (section,) = re.findall(rf"^### {name}\n(.*?)(?=^##)", page, re.MULTILINE | re.DOTALL)
    question = "question_id,content\n7,<question 7 of question.csv>\n"  # of the cmedqa2 row
    (tmp_path / "question.csv").write_text(question, encoding="utf-8")
    shapes = SHAPE.findall(section)
    assert shapes and len(shapes) == section.count("```json") + section.count("```text")
    for text, wanted in shapes:
        row = text if name == "chunyu" else row_of_list(json.loads(text))
        assert detect_format([row], "x").name == name
        assert rendered(FORMATS[name].examples(row, ReadOptions(folder=tmp_path))) == wanted


@pytest.mark.parametrize("name", FORMATS)
def test_a_sample_is_recognised_as_itself_and_by_no_earlier_format(name):
    sample = FORMATS[name].sample
    names = [other for other, entry in FORMATS.items() if entry.fits(sample)]
    assert names[0] == name
    assert detect_format([sample], "x").name == name


@pytest.mark.parametrize("row", ["", "text", {}, {"text": 1}, {"": None}, {"output": {}}])
def test_recognising_never_fails(row):
    for name in FORMATS:
        assert FORMATS[name].fits(row) in (True, False), name


def test_most_rows_decide_and_the_earlier_format_of_two():
    safety = {"instruct": "a", "output": "b"}
    consultation = FORMATS["cmtmedqa"].sample
    plain = {"instruction": "a", "output": "b"}
    assert detect_format([safety, consultation], "x").name == "cmtmedqa"
    assert detect_format([consultation, plain, plain], "x").name == "alpaca"
    assert detect_format([{"text": "a"}, plain], "x").name == "alpaca"
    assert detect_format([{"else": 1}, plain], "x").name == "alpaca"


def test_a_key_named_by_the_user_is_a_text():
    row = {"问": "a", "答": "b"}
    assert detect_format([row], "x").name == "qa"
    assert detect_format([row], "x", "答").name == "text"
    assert detect_format([row], "x", "body").name == "qa"


def test_unknown_rows_and_names_are_errors():
    with pytest.raises(
        DataError, match=r"x\.json: no format fits its rows, whose keys are 'a', 'b'"
    ):
        detect_format([{"a": 1, "b": 2}], "x.json")
    with pytest.raises(DataError, match="whose keys are none"):
        detect_format([{}], "x.json")
    with pytest.raises(ConfigError, match="--format 'excel' is none of auto, message_pairs, "):
        find_format("excel")


def test_a_file_without_a_good_row_counts_as_text(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b"{bad\n{worse\n")
    [entry] = expand_inputs([tmp_path / "x.jsonl"])
    assert format_of(entry).name == "text"
    assert format_of(entry, "qa").name == "qa"


REAL = {
    "CMtMedQA_test.json": ("array", "cmtmedqa", 1144),
    "dpo_zh_500.jsonl": ("jsonl", "sharegpt_preference", 500),
    "medical_sft_1K_format.jsonl": ("jsonl", "sharegpt", 1000),
    "medical_corpus.txt": ("jsonl", "qa", 87),
    "fever.txt": ("lines", "text", 985),
    "cmmlu_medical/dev": ("csv", "cmmlu", 35),
    "cmmlu_medical/test": ("csv", "cmmlu", 1166),
}


@pytest.mark.parametrize("name", REAL)
def test_real_files_are_recognised_and_read_to_the_last_row(real_data, name):
    from megatron_chimed.data.formats.row import RowError
    from megatron_chimed.data.reading import examples_of, iter_blocks

    container, wanted, count = REAL[name]
    inputs = expand_inputs([real_data / name])
    kinds = [format_of(entry) for entry in inputs]
    assert {entry.container for entry in inputs} == {container}
    assert {kind.name for kind in kinds} == {wanted}
    found = []
    for block in iter_blocks(inputs):
        for _, _, row in examples_of(block, inputs[block.file], kinds[block.file]):
            found.append(row)
    assert not any(isinstance(row, RowError) for row in found)
    assert [len(row) for row in found] == [1] * count


def test_a_real_conversation_is_read_word_for_word(real_data):
    rows = json.loads((real_data / "CMtMedQA_test.json").read_text(encoding="utf-8"))
    shapes = {True: 0, False: 0}
    for row in rows:
        shapes["instruct" in row] += 1
        [example] = FORMATS["cmtmedqa"].examples(row, ReadOptions())
        turns = [(turn.question, turn.answer) for turn in example.turns]
        if "instruct" in row:
            assert turns == [(row["instruct"].strip(), row["output"].strip())]
        else:
            assert turns == [*map(tuple, row["history"]), (row["instruction"], row["output"])]
    assert shapes == {False: 1000, True: 144}
