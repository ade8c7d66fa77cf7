"""External answers find their prompts by id; a row that cannot take part is named."""

import gzip
import json

import pytest

from megatron_chimed.data.formats.example import Conversation, Turn
from megatron_chimed.errors import DataError
from megatron_chimed.generation.prompts import Prompt
from megatron_chimed.rejection.external import ExternalAnswer, read_external


def lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def asked(question):
    return Conversation((Turn(question, ""),))


PROMPTS = [Prompt(id=f"q{n}", conversation=asked(f"问{n}")) for n in range(7)]


def test_answers_by_others_find_their_prompts(tmp_path):
    plain, packed = tmp_path / "gpt-3.5.jsonl", tmp_path / "gpt-4.0.jsonl.gz"
    rows = [{"id": "q2", "completion": "多喝水。"}] * 2 + [
        {"id": "q0", "completion": "就医。", "source": "doctor", "model": "x"}
    ]
    plain.write_text(lines(rows), encoding="utf-8")
    packed.write_bytes(gzip.compress(lines([{"id": "q6", "completion": " 休息 "}]).encode()))
    assert read_external([str(plain), str(packed)], PROMPTS) == [
        ExternalAnswer(prompt=2, source="gpt-3.5", text="多喝水。"),
        ExternalAnswer(prompt=2, source="gpt-3.5", text="多喝水。"),
        ExternalAnswer(prompt=0, source="doctor", text="就医。"),
        ExternalAnswer(prompt=6, source="gpt-4.0", text=" 休息 "),
    ]
    assert read_external([], PROMPTS) == []


def test_a_table_of_answers_and_numbers_as_ids(tmp_path):
    path = tmp_path / "gpt-4.csv"
    path.write_text("id,completion\n3,休息。\n", encoding="utf-8")
    prompts = [Prompt(id=str(n), conversation=asked("问")) for n in range(5)]
    assert read_external([str(path)], prompts) == [
        ExternalAnswer(prompt=3, source="gpt-4", text="休息。")
    ]


def test_unknown_ids_are_one_error_that_counts_them(tmp_path):
    path = tmp_path / "gpt-4.jsonl"
    rows = [{"id": "q1", "completion": "a"}] + [
        {"id": f"z{n}", "completion": "a"} for n in range(6)
    ]
    path.write_text(lines(rows), encoding="utf-8")
    named = ", ".join(f"'z{n}' ({path}:{n + 2})" for n in range(5))
    with pytest.raises(DataError) as caught:
        read_external([str(path)], PROMPTS)
    assert str(caught.value) == (
        f"6 of 7 external answers are to unknown prompts: {named}, .... The prompts' "
        "ids are 'q0', 'q1', 'q2', 'q3', 'q4', .... Remove those rows, or correct their ids."
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"completion": "a"}', "no 'id', so the prompt is unknown"),
        ('{"id": "q1"}', "no key 'completion'"),
        ('{"id": "q1", "completion": " "}', "'completion' is empty"),
        ('{"id": "q1", "completion": "a", "source": "policy"}', "'policy' is reserved"),
        (
            '{"id": "q1", "completion": "a", "source": "reference"}',
            "'reference' is reserved",
        ),
        ('{"id": "q1", "completion": "a", "source": 4}', "'source' is of type int"),
        ('["q1", "a"]', "no key 'completion' "),
    ],
)
def test_an_answer_that_cannot_take_part_is_named(tmp_path, line, message):
    path = tmp_path / "gpt-4.jsonl"
    path.write_text('{"id": "q0", "completion": "a"}\n' + line, encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        read_external([str(path)], PROMPTS)
    assert str(caught.value).startswith(f"{path}:2:")


def test_a_file_without_answers_is_refused(tmp_path):
    path = tmp_path / "gpt-4.jsonl"
    path.write_text("", encoding="utf-8")
    with pytest.raises(DataError, match=f"no answers in {path}. Remove it"):
        read_external([str(path)], PROMPTS)
