"""The letters that a reader takes from hand-written answers, and what no answer may do."""

from pathlib import Path

import pytest

from megatron_chimed.errors import DataError
from megatron_chimed.evaluation.scores.answers import ChoiceAnswer, extract_choice

TABLE = Path(__file__).with_name("answers.tsv")
OPTIONS = {"A": "支气管肺炎", "B": "肺结核", "C": "支气管哮喘", "D": "肺癌", "E": "胸膜炎"}


def read_table():
    sets, rows = {}, []
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        name, rest = line.split("\t", 1)
        if name.startswith("@"):
            sets[name[1:]] = dict(option.split("=", 1) for option in rest.split("|"))
        else:
            how_many, right, answer = rest.split("\t", 2)
            answer = answer.replace("\\\\", "\0").replace("\\n", "\n").replace("\0", "\\")
            rows.append((sets[name], how_many == "many", right, answer))
    return rows


ROWS = read_table()


def test_the_table_is_large_and_its_rows_differ():
    keys = [(*options.items(), multiple, answer) for options, multiple, _, answer in ROWS]
    assert len(set(keys)) == len(keys) >= 200


@pytest.mark.parametrize(("options", "multiple", "right", "answer"), ROWS)
def test_every_answer_of_the_table_is_read_as_a_reader_reads_it(options, multiple, right, answer):
    found = extract_choice(answer, options, multiple=multiple)
    assert (found.letters or f"!{found.problem}") == right, found


def test_an_answer_says_which_rule_found_it():
    found = extract_choice("故选B", OPTIONS)
    assert found == ChoiceAnswer(letters="B", problem=None, rule="stated")
    assert extract_choice("B超", OPTIONS).rule == "none"


@pytest.mark.parametrize(
    "code", ["__import__('os').abort()", "答案：(lambda: B)()", "{'answer': exit()}"]
)
def test_an_answer_is_never_run(code):
    extract_choice(code, OPTIONS)


def test_a_long_answer_takes_no_long_time():
    text = "患者低热、盗汗，A选项与CT不符。" * 2000 + "故选B"
    assert extract_choice(text, OPTIONS).letters == "B"


@pytest.mark.parametrize("keys", [["a", "B"], ["AB"], ["1"], []])
def test_options_have_one_capital_letter_each(keys):
    with pytest.raises(DataError, match="rename them to A, B, C"):
        extract_choice("A", dict.fromkeys(keys, "肺炎"))
