import json

import pytest

from examples.quickstart import dialogues
from examples.quickstart.checks.rules import MALFORMED, RuleChecker
from examples.quickstart.corpus.facts import load_diseases


@pytest.fixture(scope="module")
def checker():
    return RuleChecker()


def test_true_answers_score_one_and_answers_to_another_question_about_none(checker, tmp_path):
    dialogues.write_dialogues(tmp_path)
    rows = [
        json.loads(line)
        for line in (tmp_path / "pairs_test.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    right = [checker.score(row["chosen"], row["category"]) for row in rows]
    wrong = [checker.score(row["rejected"], row["category"]) for row in rows]
    assert min(right) > 0.7 and sum(right) / len(right) > 0.99
    assert sum(wrong) / len(wrong) < 0.05


def test_every_item_of_every_disease_is_right_for_its_own_field(checker):
    for disease in load_diseases()[::10]:
        for field in dialogues.FIELDS:
            for item in dialogues.items_of(disease, field):
                assert checker.score(f"一般来说是{item}。", field) == 1.0, item


@pytest.mark.parametrize(
    ("answer", "field", "score"),
    [
        ("您好，常见的是头晕、心悸。", "symptoms", 1.0),
        ("您好，常见的是头晕、心悸。", "drugs", 0.0),
        ("您好，常见的是头晕、氨氯地平。", "symptoms", 2 / 6),
        ("您好，常见的是氨氯地平、头晕。", "drugs", 4 / 6),
        ("您好，主要有头晕、心悸，请以医生的意见为准。", "symptoms", 1.0),
        (" 一般来说是头晕、心悸。\n", "symptoms", 1.0),
    ],
)
def test_items_of_the_asked_field_count_by_their_characters(checker, answer, field, score):
    assert checker.score(answer, field) == pytest.approx(score)


def test_a_repeated_item_counts_once(checker):
    assert checker.score("一般来说是心悸、心悸、心悸、心悸。", "symptoms") == pytest.approx(0.25)


def test_words_that_no_disease_has_count_against_the_answer(checker):
    assert checker.score("一般来说是心悸、乱七八糟。", "symptoms") == pytest.approx(2 / 6)
    assert checker.score("一般来说是乱七八糟。", "symptoms") == 0.0


@pytest.mark.parametrize("answer", ["头晕、心悸", "头晕、心悸。", "一般来说是头晕、心悸", ""])
def test_an_answer_that_is_not_worded_or_not_ended_like_one_loses(checker, answer):
    assert checker.score(answer, "symptoms") <= MALFORMED


def test_the_longest_item_wins(checker):
    """Chest pain at rest is not the chest pain within it."""
    longer = [
        (long, short)
        for long, fields in checker._fields.items()
        for short, others in checker._fields.items()
        if long.startswith(short) and long != short and not fields & others
    ]
    long, short = longer[0]
    [other] = list(checker._fields[short])[:1]
    assert checker.score(f"一般来说是{long}。", other) == 0.0
