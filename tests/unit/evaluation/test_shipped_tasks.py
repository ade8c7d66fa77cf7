"""The tasks that come along read files in the published shapes; answers go through to figures."""

import csv
import io
import json

import pytest

from megatron_chimed.evaluation.tasks.task_files import KINDS, load_task, shipped_tasks
from tests.unit.evaluation.fake_model import FakeModel, run
from tests.unit.evaluation.test_entity_task import CCKS, CMEEE
from tests.unit.evaluation.test_numeric import COLUMNS
from tests.unit.evaluation.test_open_qa import DIALOGUE
from tests.unit.evaluation.test_safety import PUBLISHED

MEDQA = {
    "question": "维生素C缺乏引起",
    "options": {"A": "夜盲症", "B": "坏血病", "C": "脚气病", "D": "佝偻病", "E": "贫血"},
    "answer": "坏血病",
    "answer_idx": "B",
    "meta_info": "营养",
}
CMB = {
    "exam_type": "医师考试",
    "exam_class": "执业医师",
    "exam_subject": "临床执业医师",
    "question": "属于感冒症状的是",
    "answer": "AB",
    "question_type": "多项选择题",
    "option": {"A": "咳", "B": "发热", "C": "骨折", "D": "脱发"},
}
CMEXAM = [
    {"Question": "属于补血药的是", "Options": "A 当归\nB 黄连", "Answer": "A", "Explanation": "x"},
    {
        "Question": "补血药有",
        "Options": "A 当归\nB 熟地黄",
        "Answer": "NaN",
        "Explanation": "",
    },
]
CHIMED = {
    "question": "头痛怎么办？",
    "answer_1": "多休息。",
    "answer_2": "少熬夜。",
    "specialty_1": "内科",
    "specialty_2": "内科",
    "adopted_1": "1",
    "adopted_2": "0",
}
CCKS_TYPES = {"疾病": "疾病和诊断", "身体": "解剖部位", "药物": "药物"}
CCKS_2019 = {
    **CCKS,
    "entities": [{**e, "label_type": CCKS_TYPES[e["label_type"]]} for e in CCKS["entities"]],
}
HUATUO = {"id": "", "instruction": ["感冒吃什么药？"], "input": "", "output": ["多喝水。"]}
QA = {"question": "发热怎么办？", "answer": "多喝水。"}


def table(*rows):
    out = io.StringIO()
    writer = csv.DictWriter(out, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def lines(*rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


CMMLU = {"": "0", "Question": "问", "A": "一", "B": "二", "C": "三", "D": "四", "Answer": "B"}
CEVAL = {"id": "0", "question": "问", "A": "一", "B": "二", "C": "三", "D": "四", "answer": "B"}
FILES = {  # by task: name and content of the file, number of items, of them unusable
    "cmmlu": ("anatomy.csv", table(*[CMMLU] * 6), 6, 0),
    "ceval": ("clinical_medicine_val.csv", table(*[CEVAL] * 6), 6, 0),
    "medqa": ("test.jsonl", lines(*[MEDQA] * 6), 6, 0),
    "medqa_4options": ("test.jsonl", lines(*[MEDQA] * 6), 6, 0),
    "cmb_exam": ("CMB-test.json", json.dumps([CMB], ensure_ascii=False), 1, 0),
    "cmexam": ("test.csv", table(*CMEXAM), 2, 1),
    "chimed_qa": ("test.jsonl", lines(*[CHIMED] * 6), 6, 0),
    "cmtmedqa": (
        "CMtMedQA_test.json",
        json.dumps([DIALOGUE, {"instruct": " 医生，我骨折了？", "output": " 建议静养。"}]),
        2,
        0,
    ),
    "huatuo": ("huatuo26M_test.json", json.dumps([HUATUO], ensure_ascii=False), 1, 0),
    "webmedqa": ("test.jsonl", lines(QA), 1, 0),
    "cmedqa2": ("test_candidates.txt", "question_id,ans_id,cnt,label\n7,1,0,1\n7,2,0,0\n", 1, 0),
    "ccks2019": (
        "subtask1_test.txt",
        lines(*[CCKS_2019] * 4),
        4,
        0,
    ),
    "cmeee": ("CMeEE_dev.json", json.dumps([CMEEE] * 4, ensure_ascii=False), 4, 0),
    "medcalc": ("test_data.csv", table(COLUMNS), 1, 0),
    "safety_prompts": ("typical_safety_scenarios.json", json.dumps(PUBLISHED), 3, 0),
}
CMEDQA2_TABLES = {
    "question.csv": "question_id,content\n7,皮肤痒怎么办？\n",
    "answer.csv": "ans_id,question_id,content\n1,7,请到皮肤科就诊。\n2,7,不知道。\n",
}


def test_every_task_has_a_fixture_and_says_where_its_data_are():
    assert set(FILES) == set(shipped_tasks())
    for path in shipped_tasks().values():
        text = path.read_text(encoding="utf-8")
        assert text.startswith("# ") and "source: http" in text
        assert max(len(line) for line in text.splitlines() if line.isascii()) <= 100


@pytest.mark.parametrize("name", FILES)
def test_a_shipped_task_reads_the_published_shape(name, tmp_path):
    file, content, num_items, num_unusable = FILES[name]
    (tmp_path / file).write_text(content, encoding="utf-8")
    if name == "cmedqa2":
        for table_name, rows in CMEDQA2_TABLES.items():
            (tmp_path / table_name).write_text(rows, encoding="utf-8")
    data = str(tmp_path / file)
    values = {"task": name, "data": [data]}
    if "num_shots" in shipped_tasks()[name].read_text():
        values["shots"] = [data]
    if name == "huatuo":
        values["modes"] = ["standard"]  # the other one needs jieba
    task = load_task(values, "tasks[0]")
    assert task.name == name and isinstance(task, KINDS[task.kind])
    for measure in task.measures():
        assert len(measure.entries) == num_items
        unusable = [entry.problem for entry in measure.entries if entry.request is None]
        if task.kind != "choice" or measure.scoring == "generation":
            assert len(unusable) == num_unusable, unusable
        items = run(measure, FakeModel(lambda prompt: "答案：A"))
        figures = measure.figures(items, 0)
        assert [f.metric for f in figures] and measure.title and measure.baselines() is not None
        assert all(measure.main_score in item.scores for item in items if item.dropped is None)


def test_the_real_cmmlu_is_read(real_data):
    folder = real_data / "cmmlu_medical"
    values = {
        "task": "cmmlu",
        "data": [str(folder / "test" / "*.csv")],
        "shots": [str(folder / "dev" / "*.csv")],
    }
    (measure,) = load_task(values, "tasks[0]").measures()
    assert len(measure.entries) == 1166
