"""Final numbers, dates and durations as a reader takes them from an answer."""

import datetime

import pytest

from megatron_chimed.evaluation.scores.numeric_answers import (
    extract_date,
    extract_number,
    extract_weeks_days,
    is_within,
)

NUMBERS = [
    ("24.2", "", 24.2),
    ("24.2 kg/m²", "kg/m²", 24.2),
    ("BMI = 70 / (1.7 × 1.7) = 24.2 kg/m²", "kg/m^2", 24.2),
    ("答案是24.2 kg/m²，正常范围为18.5-23.9。", "kg/m²", 24.2),
    ("体重70kg，身高1.70m，因此BMI为24.2。", "", 24.2),
    ("\\boxed{24.2}", "", 24.2),
    ("\\boxed{24.2\\ \\text{kg/m}^2}", "kg/m2", 24.2),
    ("<think>大约是30</think>答案：24.2", "", 24.2),
    ("<answer>24.2</answer>", "", 24.2),
    ('{"step": "70/2.89", "answer": 24.2}', "", 24.2),
    ('{"answer": "24.2 kg"}', "kg", 24.2),
    ("The answer is 24.2.", "", 24.2),
    ("结果约为 1,250 ml", "ml", 1250),
    ("总分：5分", "分", 5),
    ("CHA2DS2-VASc评分为4分", "分", 4),
    ("白细胞为1.5×10⁹/L", "", 1.5e9),
    ("白细胞为1.5×10^9/L", "", 1.5e9),
    ("1.2e-3", "", 0.0012),
    ("碱剩余为-5 mmol/L", "mmol/L", -5),
    ("碱剩余为−5 mmol/L", "mmol/L", -5),
    ("肌酐清除率 = 85.3 mL/min（体表面积1.73m2）", "mL/min", 85.3),
    ("体表面积为1.73m2", "", 1.73),
    ("答案为２４．２", "", 24.2),
    ("FENa为0.8%", "%", 0.8),
    ("HbA1c 7.2", "", 7.2),
    ("70×100=7000", "", 7000),
    ("因此，阴离子间隙 = 140 - (104 + 24) = 12 mmol/L。", "mmol/L", 12),
]


@pytest.mark.parametrize(("answer", "unit", "right"), NUMBERS)
def test_the_final_number(answer, unit, right):
    found = extract_number(answer, unit)
    assert found.value == pytest.approx(right), found
    assert found.problem is None


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("", "empty"),
        ("<think>70/1.7", "unfinished"),
        ("抱歉，我无法计算，请咨询医生。", "refusal"),
        ("偏高", "unparsed"),
        ("答案是20-30", "several"),
        ("20~30 ml", "several"),
        ("CO2与HbA1c", "unparsed"),
    ],
)
def test_no_number_says_why(answer, problem):
    found = extract_number(answer)
    assert (found.value, found.problem) == (None, problem)


@pytest.mark.parametrize(
    "answer",
    [
        "2024-05-07",
        "2024年5月7日",
        "预产期为2024/5/7。",
        "05/07/2024",
        "末次月经2023年7月31日，预产期为2024年5月7日",
    ],
)
def test_the_final_date(answer):
    assert extract_date(answer).value == datetime.date(2024, 5, 7)


def test_dates_that_are_none_or_whose_order_differs():
    assert extract_date("2024-13-40").problem == "unparsed"
    assert extract_date("07/05/2024", month_first=False).value == datetime.date(2024, 5, 7)
    assert extract_date("13/05/2024").problem == "unparsed"


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("12周3天", (12, 3)),
        ("孕12周零3天", (12, 3)),
        ("12+3周", (12, 3)),
        ("12 weeks and 3 days", (12, 3)),
        ("(12 weeks, 3 days)", (12, 3)),
        ("12周", (12, 0)),
        ("不是10周，而是12周3天。", (12, 3)),
    ],
)
def test_weeks_and_days(answer, right):
    assert extract_weeks_days(answer).value == right


def test_a_value_is_right_within_its_tolerance():
    assert is_within(105, 100)
    assert not is_within(105.1, 100)
    assert is_within(-95, -100)
    assert is_within(0, 0)
    assert not is_within(4.01, 4, relative=0)
    assert is_within(0.1 + 0.2, 0.3, relative=0)
    assert is_within(98, 100, limits=(95, 99))
    assert not is_within(100, 100, limits=(95, 99))
