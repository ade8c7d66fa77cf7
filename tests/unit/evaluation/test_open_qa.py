"""Open questions and dialogues: prompts, histories, text scores, and what is counted."""

import json

import pytest

from megatron_chimed.errors import ConfigError, DataError
from megatron_chimed.evaluation.requests import Refused
from megatron_chimed.evaluation.tasks.answer_settings import AnswerSettings
from megatron_chimed.evaluation.tasks.open_qa import OpenQATask
from tests.unit.evaluation.fake_model import FakeModel, by_metric, run

DIALOGUE = {
    "id": "d",
    "cate1": "内科",
    "cate2": "呼吸内科",
    "instruction": "需要吃药吗？",
    "input": "",
    "output": "先多喝水。",
    "history": [["我咳嗽。", "多久了？"], ["三天。", "有发热吗？"]],
}
SINGLE = {"id": "s", "question": "发热怎么办？", "answer": "多喝水，多休息。", "category": "外科"}


def write(path, *rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(path)


def measure_of(tmp_path, *rows, **changes):
    data = write(tmp_path / "data.jsonl", *(rows or (SINGLE,)))
    (measure,) = OpenQATask(name="qa", data=(data,), **changes).measures()
    return measure


def test_an_answer_equal_to_its_reference_scores_100(tmp_path):
    measure = measure_of(tmp_path, SINGLE, {**SINGLE, "id": "t", "question": "再问"})
    items = run(measure, FakeModel(lambda prompt: "<think>想</think>多喝水，多休息。"))
    figures = by_metric(measure.figures(items, 0))
    assert figures["bleu_4 [standard]"].value == pytest.approx(100)
    assert figures["rouge_l [standard]"].value == pytest.approx(100)
    assert figures["bleu_4 [standard]"].signature.startswith("bleu_4|mode:standard|tok:zh")
    assert figures["length [standard]"].value == 8
    assert figures["empty answers"].value == 0
    for name, figure in figures.items():
        assert figure.num_used == 2
        assert figure.interval is not None or "distinct" in name
    assert items[0].scores["rouge_l"] == pytest.approx(100)


def test_empty_answers_count_and_score_0(tmp_path):
    measure = measure_of(tmp_path, SINGLE, {**SINGLE, "id": "t"})
    texts = iter(["多喝水，多休息。", "<think>没想完"])
    items = run(measure, FakeModel(lambda prompt: next(texts)))
    figures = by_metric(measure.figures(items, 0))
    assert figures["rouge_l [standard]"].value == pytest.approx(50)
    assert (figures["empty answers"].value, figures["empty answers"].num_used) == (0.5, 2)


def test_the_last_turn_follows_the_dialogue(tmp_path):
    measure = measure_of(tmp_path, DIALOGUE, category_key="cate1", system="你是医生。")
    (item,) = run(measure, FakeModel(lambda prompt: "先多喝水。"))
    assert item.id == "d" and item.group == "内科"
    assert item.prompt == (
        "system: 你是医生。\nuser: 我咳嗽。\nassistant: 多久了？\nuser: 三天。\n"
        "assistant: 有发热吗？\nuser: 需要吃药吗？"
    )


def test_all_turns_follow_the_answers_of_the_file(tmp_path):
    measure = measure_of(tmp_path, DIALOGUE, turns="all")
    items = run(measure, FakeModel(lambda prompt: "答"))
    assert [item.id for item in items] == ["d@1", "d@2", "d@3"]
    assert [item.prompt.count("assistant: ") for item in items] == [0, 1, 2]
    assert items[2].prompt.endswith("assistant: 有发热吗？\nuser: 需要吃药吗？")
    references = [item.details["pairs"][0]["reference"] for item in items]
    assert references == ["多久了？", "有发热吗？", "先多喝水。"]


def test_own_history_keeps_the_model_s_own_answers(tmp_path):
    measure = measure_of(tmp_path, DIALOGUE, SINGLE, turns="all", history="own")
    model = FakeModel(lambda prompt: f"答{prompt.count('user:')}")
    long, short = run(measure, model)
    asked = [request.prompt for request in model.requests]
    assert [prompt.history for prompt in asked if prompt.question == "需要吃药吗？"] == [
        (("我咳嗽。", "答1"), ("三天。", "答2"))
    ]
    assert [pair["answer"] for pair in long.details["pairs"]] == ["答1", "答2", "答3"]
    assert [pair["answer"] for pair in short.details["pairs"]] == ["答1"]
    figures = by_metric(measure.figures([long, short], 0))
    assert figures["rouge_1 [standard]"].num_used == 4


def test_a_refused_turn_drops_its_dialogue_with_the_reason(tmp_path):
    def answer(prompt):
        return Refused(reason="too long") if "三天" in prompt else "答"

    measure = measure_of(tmp_path, DIALOGUE, SINGLE, turns="all", history="own")
    dropped, kept = run(measure, FakeModel(answer))
    assert dropped.dropped == "too long" and kept.dropped is None


def test_the_papers_prompt_is_text_with_tags(tmp_path):
    shots = write(tmp_path / "dev.jsonl", {"question": "头痛？", "answer": "休息。"}, SINGLE)
    measure = measure_of(tmp_path, style="papers", shots=(shots,), num_shots=1)
    model = FakeModel(lambda prompt: "答")
    (item,) = run(measure, model)
    assert item.prompt == "<human>:头痛？\n<bot>:休息。\n<human>:发热怎么办？\n<bot>:"
    assert model.requests[0].stop_strings == ("<human>", "[human]")


def test_questions_are_put_and_answers_drawn_as_the_task_says(tmp_path):
    answers = AnswerSettings(max_new_tokens=9, temperature=0.7, top_p=0.8, seed=3)
    measure = measure_of(tmp_path, question="请回答：{question}", answers=answers)
    model = FakeModel(lambda prompt: "答")
    run(measure, model)
    (request,) = model.requests
    assert request.prompt.question == "请回答：发热怎么办？"
    assert (request.max_new_tokens, request.temperature, request.top_p) == (9, 0.7, 0.8)


def test_a_question_without_a_reference_is_counted(tmp_path):
    measure = measure_of(tmp_path, SINGLE, {"id": "p", "prompt": "只有问题"})
    _, dropped = run(measure, FakeModel(lambda prompt: "答"))
    assert dropped.dropped == "no reference answer"
    with pytest.raises(DataError, match="has an answer to compare with"):
        measure_of(tmp_path, {"prompt": "只有问题"})


def test_modes_are_named_and_every_model_has_the_same_figures(tmp_path):
    measure = measure_of(tmp_path, SINGLE, modes=("standard", "chimed_compat"))
    answered = measure.figures(run(measure, FakeModel(lambda prompt: "多喝水")), 0)
    refused = measure.figures(run(measure, FakeModel(lambda prompt: Refused(reason="no"))), 0)
    assert [f.metric for f in answered] == [f.metric for f in refused]
    assert all(figure.value is None and figure.num_used == 0 for figure in refused)
    assert "rouge_l [chimed_compat]" in by_metric(answered)


def test_categories_have_figures_and_another_reference_is_the_baseline(tmp_path):
    rows = [{**SINGLE, "id": str(n), "category": "内外"[n % 2]} for n in range(4)]
    measure = measure_of(tmp_path, *rows)
    figures = by_metric(measure.figures(run(measure, FakeModel(lambda p: "多喝水，多休息。")), 0))
    assert figures["rouge_l [standard]", "内"].num_used == 2
    baselines = by_metric(measure.baselines())
    name = "rouge_l [standard] of another question's reference"
    assert baselines[name].value == pytest.approx(100)  # all references are equal here


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": ()}, "data is empty"),
        ({"num_shots": 2}, "shots lists no files"),
        ({"question": "x"}, "no {question} in it"),
        ({"modes": ()}, "modes must list"),
        ({"history": "own"}, "history own needs turns all"),
        ({"limit": -1}, "limit is -1"),
    ],
)
def test_a_wrong_task_is_explained(changes, message):
    with pytest.raises(ConfigError, match=message):
        OpenQATask(**{"name": "qa", "data": ("x",), **changes})


def test_too_few_shots_are_an_error(tmp_path):
    shots = write(tmp_path / "dev.jsonl", SINGLE)
    with pytest.raises(DataError, match="2 shots are asked for.*has 1"):
        measure_of(tmp_path, shots=(shots,), num_shots=2)


def test_the_real_dialogues_are_asked(real_data):
    task = OpenQATask(
        name="cmtmedqa", data=(str(real_data / "CMtMedQA_test.json"),), category_key="cate1"
    )
    (measure,) = task.measures()
    assert len(measure.entries) == 1144
    assert not any(entry.problem for entry in measure.entries)
