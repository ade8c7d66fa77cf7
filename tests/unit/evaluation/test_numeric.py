"""Numbers, dates and durations as answers."""

import csv
import json

import pytest

from megatron_chimed.errors import ConfigError, DataError
from megatron_chimed.evaluation.tasks.numeric import NumericTask
from tests.unit.evaluation.fake_model import FakeModel, by_metric, run

COLUMNS = {
    "Row Number": "1",
    "Calculator ID": "2",
    "Calculator Name": "Creatinine Clearance",
    "Category": "lab test",
    "Output Type": "decimal",
    "Note ID": "pmc-1",
    "Note Type": "Extracted",
    "Patient Note": "An 87-year-old man, 48 kg.",
    "Question": "What is the creatinine clearance?",
    "Relevant Entities": "{}",
    "Ground Truth Answer": "25.238",
    "Lower Limit": "23.9761",
    "Upper Limit": "26.4999",
    "Ground Truth Explanation": "...",
}


def measure_of(tmp_path, *rows, **changes):
    path = tmp_path / "test_data.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    (measure,) = NumericTask(name="calc", data=(str(path),), **changes).measures()
    return measure


def test_the_published_table_is_read(tmp_path):
    path = tmp_path / "test_data.csv"
    with open(path, "w", newline="") as out:
        writer = csv.DictWriter(out, COLUMNS)
        writer.writeheader()
        writer.writerow(COLUMNS)
    (measure,) = NumericTask(name="calc", data=(str(path),)).measures()
    (item,) = run(measure, FakeModel(lambda prompt: "计算……\n答案：26.4 mL/min"))
    assert item.prompt.startswith("user: An 87-year-old man, 48 kg.\n\nWhat is the creatinine")
    assert item.group == "lab test" and item.scores["accuracy"] == 1


@pytest.mark.parametrize(
    ("right", "answer", "accuracy"),
    [
        (100, "答案：104.9", 1),
        (100, "答案：105.1", 0),
        ("05/17/2024", "答案：2024年5月17日", 1),
        ("2024-05-17", "答案：2024-05-18", 0),
        ("('17 weeks', '4 days')", "答案：17周4天", 1),
        ("17 weeks, 4 days", "答案：17周5天", 0),
        (100, "无法计算", 0),
        (100, "", 0),
    ],
)
def test_an_answer_counts_within_its_tolerance(tmp_path, right, answer, accuracy):
    measure = measure_of(tmp_path, {"question": "多少？", "answer": right})
    (item,) = run(measure, FakeModel(lambda prompt: answer))
    assert item.scores["accuracy"] == accuracy
    assert item.scores["unparsed"] == float(answer in ("无法计算", ""))


def test_figures_have_intervals_and_the_baseline_is_the_best_constant(tmp_path):
    rows = [{"question": "?", "answer": n, "category": "ab"[n % 2]} for n in (10, 10, 10, 31)]
    measure = measure_of(tmp_path, *rows)
    items = run(measure, FakeModel(lambda prompt: "答案：10"))
    figures = by_metric(measure.figures(items, 0))
    assert figures["accuracy"].value == 0.75 and figures["accuracy"].interval.method == "Wilson"
    assert figures["accuracy", "b"].value == 0
    assert by_metric(measure.baselines())["accuracy of the best constant number"].value == 0.75


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"answer": 3}, "no question"),
        ({"question": "?", "answer": "NaN"}, "is no number, date or duration"),
        ({"question": "?"}, "is no number, date or duration"),
        ({"question": "?", "answer": "2024-13-40"}, "is no number, date or duration"),
        ({"question": "?", "answer": 3, "lower": 4, "upper": 5}, "outside its limits 4 to 5"),
    ],
)
def test_a_bad_row_is_counted_with_its_reason(tmp_path, row, reason):
    measure = measure_of(tmp_path, row, {"question": "?", "answer": 3})
    dropped, kept = run(measure, FakeModel(lambda prompt: "3"))
    assert reason in dropped.dropped and kept.scores["accuracy"] == 1
    with pytest.raises(DataError, match="no row .* can be used"):
        measure_of(tmp_path, row)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": ()}, "data is empty"),
        ({"instruction": "?"}, "no {question} in it"),
        ({"tolerance": 1.0}, "tolerance is 1"),
        ({"limit": -1}, "limit is -1"),
    ],
)
def test_a_wrong_task_is_explained(changes, message):
    with pytest.raises(ConfigError, match=message):
        NumericTask(**{"name": "calc", "data": ("x",), **changes})
