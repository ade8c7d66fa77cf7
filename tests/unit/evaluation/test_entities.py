"""Entities read from answers, and their scores against seqeval and sets by hand."""

import numpy as np
import pytest

from megatron_chimed.errors import DataError
from megatron_chimed.evaluation.scores.entities import (
    EntitySpan,
    annotated_text,
    check_texts,
    locate,
    normalize,
    score_entities,
)
from megatron_chimed.evaluation.scores.entity_answers import Mention, ParsedEntities, parse_entities

TYPES = {"疾病和诊断": ("疾病", "dis"), "药物": ("dru",), "解剖部位": ("部位", "bod"), "手术": ()}
WANTED = [("疾病和诊断", "高血压"), ("疾病和诊断", "糖尿病"), ("药物", "阿司匹林")]

READABLE = [
    "疾病和诊断：高血压，糖尿病\n药物：阿司匹林",
    "疾病和诊断:高血压,糖尿病\n药物:阿司匹林",
    "疾病和诊断：高血压、糖尿病\n药物：阿司匹林\n手术：无",
    "疾病：高血压；糖尿病\n药物：阿司匹林。\n手术：",
    "- 疾病和诊断：高血压，糖尿病\n- 药物：阿司匹林",
    "1. 疾病和诊断：高血压，糖尿病\n2. 药物：阿司匹林",
    "**疾病和诊断**：高血压，糖尿病\n**药物**：阿司匹林",
    "【疾病和诊断】：高血压，糖尿病\n【药物】：阿司匹林",
    "疾病和诊断：“高血压”，“糖尿病”\n药物：「阿司匹林」",
    "疾病和诊断：[高血压, 糖尿病]\n药物：[阿司匹林]",
    "疾病和诊断：\n- 高血压\n- 糖尿病\n药物：\n- 阿司匹林",
    "疾病和诊断\n高血压\n糖尿病\n药物\n阿司匹林",
    "高血压（疾病）\n糖尿病（疾病）\n阿司匹林（药物）",
    "高血压：疾病\n糖尿病：疾病\n阿司匹林：药物",
    "高血压 - 疾病\n糖尿病 - 疾病\n阿司匹林 - 药物",
    "DIS：高血压，糖尿病\ndru：阿司匹林",
    "<think>疾病：感冒</think>疾病：高血压，糖尿病\n药物：阿司匹林",
    '{"疾病和诊断": ["高血压", "糖尿病"], "药物": ["阿司匹林"]}',
    '{"疾病和诊断": "高血压，糖尿病", "药物": "阿司匹林", "手术": []}',
    '```json\n{"疾病": ["高血压", "糖尿病"], "药物": ["阿司匹林"], "手术": "无"}\n```',
    "{'疾病': ['高血压', '糖尿病'], '药物': ['阿司匹林']}",
    '实体如下：[{"entity": "高血压", "type": "疾病"}, {"entity": "糖尿病", "type": "疾病"}, '
    '{"entity": "阿司匹林", "type": "药物"}]',
    '[["疾病", "高血压"], ["疾病", "糖尿病"], ["药物", "阿司匹林"]]',
    '{"entities": [{"text": "高血压", "label": "dis"}, {"text": "糖尿病", "label": "dis"}, '
    '{"text": "阿司匹林", "label": "dru"}]}',
    '{"疾病": [{"text": "高血压"}, {"text": "糖尿病"}], "药物": [{"text": "阿司匹林"}]}',
    "疾病和诊断：高血压，高血压，糖尿病\n药物：阿司匹林",
]


@pytest.mark.parametrize("answer", READABLE)
def test_entities_are_read_from_lines_and_json(answer):
    found = parse_entities(answer, TYPES)
    assert sorted(found.mentions) == sorted(WANTED)
    assert (found.problem, found.unknown_types) == (None, ())


@pytest.mark.parametrize(
    "answer",
    [
        "无",
        "疾病：无\n药物：无",
        "{}",
        "[]",
        "没有相关实体。",
        '{"疾病": []}',
        "疾病和诊断：\n药物：",
    ],
)
def test_naming_nothing_is_an_answer(answer):
    assert parse_entities(answer, TYPES) == ParsedEntities(mentions=(), problem=None)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("", "empty"),
        ("<think>高血压", "unfinished"),
        ("抱歉，我无法回答。", "refusal"),
        ("这是一段病历。", "unparsed"),
    ],
)
def test_what_cannot_be_read_says_why(answer, problem):
    assert parse_entities(answer, TYPES) == ParsedEntities(mentions=(), problem=problem)


def test_types_that_the_task_does_not_have_are_named():
    found = parse_entities("症状：头痛\n药物：阿司匹林", TYPES)
    assert found.mentions == (("药物", "阿司匹林"),)
    assert found.unknown_types == ("症状",)


def test_widths_of_entities_are_kept():
    assert parse_entities("药物：维生素Ｃ", TYPES).mentions == (("药物", "维生素Ｃ"),)


TEXT = "患者高血压十年，高血压控制可，右肺肺炎，服阿司匹林。"


def document(*spans, text=TEXT):
    return annotated_text(text, spans, inclusive_end=False)


GOLD = document(
    ("疾病和诊断", 2, 5), ("疾病和诊断", 8, 11), ("疾病和诊断", 17, 19), ("药物", 21, 25)
)


def answer(*mentions, problem=None):
    return ParsedEntities(mentions=tuple(Mention(*one) for one in mentions), problem=problem)


def numbers(score):
    return pytest.approx((score.precision, score.recall, score.f1))


def test_the_three_scores_by_hand():
    found = answer(
        ("疾病和诊断", "高血压"),
        ("疾病和诊断", "右肺肺炎"),
        ("药物", "阿司匹林"),
        ("药物", "青霉素"),
    )
    report = score_entities([GOLD], [found])
    # Surfaces: 2 of 4 are right, of 3. Places: 3 of 4, and one that is not in the text, of 4.
    assert numbers(report.micro["surface"]) == (2 / 4, 2 / 3, 4 / 7)
    assert numbers(report.micro["span"]) == (3 / 5, 3 / 4, 2 / 3)
    assert numbers(report.micro["relaxed"]) == (4 / 5, 1, 8 / 9)
    assert (report.num_hallucinated, report.num_named) == (1, 4)
    assert numbers(report.by_type["span"]["药物"]) == (1 / 2, 1, 2 / 3)
    assert report.macro_f1["span"] == pytest.approx((2 / 3 + 2 / 3) / 2)


def test_a_missed_second_mention_matters_to_places_only():
    gold = document(("疾病和诊断", 2, 5))
    report = score_entities([gold], [answer(("疾病和诊断", "高血压"))])
    assert report.micro["surface"].f1 == 1
    assert report.micro["span"].precision == 0.5


def test_the_longest_mention_of_a_type_takes_its_characters():
    mentions = [Mention("病", "肺炎"), Mention("病", "支气管肺炎"), Mention("位", "支气管")]
    assert set(locate("支气管肺炎,肺炎", mentions)) == {
        EntitySpan("病", 0, 5),
        EntitySpan("病", 6, 8),
        EntitySpan("位", 0, 3),
    }


def test_a_right_text_of_a_wrong_type_is_wrong():
    report = score_entities([GOLD], [answer(("药物", "高血压"))])
    assert {score.f1 for score in report.micro.values()} == {0.0}


def test_every_document_counts_and_every_unread_answer_has_a_reason():
    answers = [answer(problem="refusal"), answer(problem="empty"), answer(("药物", "阿司匹林"))]
    report = score_entities([GOLD] * 3, answers)
    assert report.problems == {"refusal": 1, "empty": 1}
    assert (report.num_documents, report.micro["surface"].num_right) == (3, 9)
    assert report.micro["surface"].recall == pytest.approx(1 / 9)


def test_nothing_to_name_and_nothing_named_is_zero_not_an_error():
    report = score_entities([document()], [answer()])
    assert report.micro["span"].f1 == 0
    assert report.macro_f1["span"] == 0


def test_width_is_folded_only_if_asked():
    gold = annotated_text("服维生素Ｃ", [("药物", 1, 5)], inclusive_end=False)
    found = [answer(("药物", "维生素C"))]
    assert score_entities([gold], found).micro["surface"].f1 == 0
    assert score_entities([gold], found, fold_width=True).micro["surface"].f1 == 1
    assert normalize("　“℃①” ") == "℃①"


def to_bio(text, spans):
    tags = ["O"] * len(text)
    for type_, start, end in spans:
        tags[start] = f"B-{type_}"
        tags[start + 1 : end] = [f"I-{type_}"] * (end - start - 1)
    return tags


def test_places_score_as_seqeval_does():
    metrics = pytest.importorskip("seqeval.metrics", reason="the oracle, of the extra dev")
    rng = np.random.default_rng(0)
    documents, answers, gold_tags, found_tags = [], [], [], []
    for _ in range(60):
        words = ["".join(chr(0x4E00 + one) for one in rng.integers(900, size=3)) for _ in range(8)]
        text = "，".join(words)
        kinds = rng.choice(["dis", "dru", ""], 8)
        spans = [(k, 4 * i, 4 * i + 3) for i, k in enumerate(kinds) if k]
        documents.append(annotated_text(text, spans, inclusive_end=False))
        guesses = {
            word: (k if rng.random() < 0.7 else rng.choice(["dis", "dru"]))
            for word, k in zip(words, kinds, strict=True)
            if (k if rng.random() < 0.8 else not k)
        }
        cut = {word[: rng.choice([2, 3])]: str(k or "dis") for word, k in guesses.items()}
        answers.append(answer(*((k, word) for word, k in cut.items())))
        gold_tags.append(to_bio(text, spans))
        found_tags.append(to_bio(text, locate(text, answers[-1].mentions)))
    report = score_entities(documents, answers)
    assert report.num_hallucinated == 0
    oracle = (
        metrics.precision_score(gold_tags, found_tags),
        metrics.recall_score(gold_tags, found_tags),
        metrics.f1_score(gold_tags, found_tags),
    )
    assert numbers(report.micro["span"]) == oracle
    assert 0.2 < oracle[2] < 0.9
    assert report.macro_f1["span"] == pytest.approx(
        metrics.f1_score(gold_tags, found_tags, average="macro")
    )
    low, high = report.f1_intervals["span"]
    assert low < oracle[2] < high < low + 0.2


def test_ends_of_cmeee_are_inclusive_and_those_of_ccks_are_not():
    text = "左肺下叶"
    cmeee = annotated_text(text, [("bod", 1, 1)], inclusive_end=True)
    ccks = annotated_text(text, [("bod", 1, 2)], inclusive_end=False)
    assert cmeee == ccks
    check_texts(cmeee, ["肺"])
    wrong = annotated_text(text, [("bod", 1, 2)], inclusive_end=True)
    with pytest.raises(DataError, match="row 3: .*'肺下'.*'肺'.*inclusive"):
        check_texts(wrong, ["肺"], "row 3")


@pytest.mark.parametrize("span", [("bod", 1, 1), ("bod", -1, 1), ("bod", 0, 9)])
def test_offsets_outside_the_text_are_refused(span):
    with pytest.raises(DataError, match=r"row 7: a bod covers.*inclusive"):
        annotated_text("左肺", [span], inclusive_end=False, where="row 7")


def test_answers_must_fit_the_documents():
    with pytest.raises(DataError, match="1 documents and 0 answers"):
        score_entities([GOLD], [])
