"""Test files of any shape become questions with their choices."""

import json

import pytest

from megatron_chimed.data.cleaning import CleaningConfig, Decontaminator, cleaning_identity
from megatron_chimed.data.cleaning.exam_items import read_exams
from megatron_chimed.errors import DataError

QUESTION = "女性生殖腺是"
CHOICES = ("卵巢", "前庭大腺", "前庭球", "乳腺")
LETTERS = "ABCD"
LISTED = "A. 卵巢\nB. 前庭大腺\nC. 前庭球\nD. 乳腺"


def write(path, *rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def parts(path):
    ((name, (item,)),) = read_exams([path])
    assert name == str(path)
    return item.question.strip(), item.choices


@pytest.mark.parametrize(
    "row",
    [
        {"question": QUESTION, **dict(zip(LETTERS, CHOICES, strict=True)), "answer": "A"},
        {"question": QUESTION, "options": dict(zip(LETTERS, CHOICES, strict=True))},
        {"question": QUESTION, "option": list(CHOICES), "answer": "A"},
        {"question": QUESTION, "option": dict(zip(LETTERS, CHOICES, strict=True)), "answer": "A"},
        {
            "question": QUESTION,
            "options": [f"{a}. {b}" for a, b in zip(LETTERS, CHOICES, strict=True)],
        },
        {
            "question": QUESTION,
            "options": [{"key": a, "value": b} for a, b in zip(LETTERS, CHOICES, strict=True)],
        },
        {"question": QUESTION, "options": [{a: b} for a, b in zip(LETTERS, CHOICES, strict=True)]},
        {"question": QUESTION, "choices": {"text": list(CHOICES), "label": list(LETTERS)}},
        {
            "question": QUESTION,
            **dict(zip(("opa", "opb", "opc", "opd"), CHOICES, strict=True)),
            "cop": 1,
        },
        {"Question": QUESTION, "Options": LISTED, "Answer": None},
        {"题目": QUESTION, "选项": LISTED.replace("\n", " "), "答案": "A"},
        {"text": QUESTION, "choice": list(CHOICES), "label": 0},
        {"question": f"{QUESTION}\n{LISTED}", "answer": "A"},
        {"instruction": f"{QUESTION}\n\n{LISTED}", "input": "", "output": "A"},
        {
            "messages": [
                {"role": "user", "content": f"{QUESTION}\n{LISTED}"},
                {"role": "assistant", "content": "A"},
            ]
        },
        {"text": f"{QUESTION}\n{LISTED}"},
    ],
)
def test_choices_are_read_in_any_shape(tmp_path, row):
    assert parts(write(tmp_path / "test.jsonl", row)) == (QUESTION, CHOICES)


@pytest.mark.parametrize("header", ["Question,A,B,C,D", "题目,A,B,C,D", ",question,A,B,C,D"])
def test_a_table_needs_no_answers(tmp_path, header):
    path = tmp_path / "test.csv"
    fields = [QUESTION, *CHOICES] if header[0] != "," else ["0", QUESTION, *CHOICES]
    path.write_text(f"{header}\n{','.join(fields)}\n")
    assert parts(path) == (QUESTION, CHOICES)
    assert cleaning_identity(CleaningConfig(decontaminate=(str(path),)))


def test_a_table_without_questions_is_refused(tmp_path):
    path = tmp_path / "test.csv"
    path.write_text("stem,A,B\n发热,1,2\n")
    with pytest.raises(DataError, match="no format knows this table"):
        list(read_exams([path]))


def test_a_short_question_without_choices_takes_its_answer(tmp_path):
    row = {"instruction": QUESTION, "input": "", "output": "位于盆腔的卵巢，左右各一个"}
    assert parts(write(tmp_path / "test.jsonl", row)) == (QUESTION, (row["output"],))


@pytest.mark.parametrize("question", [QUESTION, "", "——？"])
def test_a_file_without_anything_to_search_for_is_refused(tmp_path, question):
    path = write(tmp_path / "test.jsonl", *[{"question": question, "opts": list(CHOICES)}] * 2)
    good = write(tmp_path / "good.jsonl", {"question": QUESTION, "options": list(CHOICES)})
    with pytest.raises(DataError) as caught:
        Decontaminator(CleaningConfig(decontaminate=(str(good), str(path))))
    message = str(caught.value)
    assert f"test file {path}: none of its 2 questions can be searched for" in message
    assert "on line 1" in message and "Does the file have" in message


@pytest.mark.parametrize("own", ["utf-8", "gb18030", "utf-16"])
def test_test_files_may_be_in_the_encoding_of_the_command_or_in_utf8(tmp_path, own):
    path = tmp_path / "test.csv"
    question = "女性生殖腺是指卵巢还是前庭大腺"
    path.write_bytes(f"题目,A,B\n{question},卵巢,乳腺\n".encode(own))
    encoding = "gb18030" if own == "utf-8" else own
    config = CleaningConfig(decontaminate=(str(path),), encoding=encoding)
    assert Decontaminator(config).find(f"请问{question}？卵巢，乳腺") == [0]
    assert cleaning_identity(config)


def test_a_test_file_in_another_encoding_names_the_flag(tmp_path):
    path = tmp_path / "test.csv"
    path.write_bytes("题目,A,B\n女性生殖腺是指卵巢还是前庭大腺,卵巢,乳腺\n".encode("gb18030"))
    with pytest.raises(DataError, match="Pass --encoding gb18030"):
        Decontaminator(CleaningConfig(decontaminate=(str(path),)))
