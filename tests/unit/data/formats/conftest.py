"""The tables of cMedQA2, small."""

import csv

import pytest

QUESTIONS = [["question_id", "content"], ["7", 'q, "7"\nnext'], ["9", "q9"]]
ANSWERS = [
    ["ans_id", "question_id", "content"],
    ["1", "9", "a1"],
    ["4", "7", "长\n答"],
    ["2", "7", "a2"],
]


@pytest.fixture
def folder(tmp_path):
    """A folder with both tables."""
    for name, rows in (("question", QUESTIONS), ("answer", ANSWERS)):
        with open(tmp_path / f"{name}.csv", "w", encoding="utf-8-sig", newline="") as stream:
            csv.writer(stream).writerows(rows)
    return tmp_path
