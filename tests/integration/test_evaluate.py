"""An evaluation through its command: transformers' numbers, and the same bytes after a kill."""

import itertools
import json

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_chimed.evaluation import running
from megatron_chimed.observe.intervals import wilson_interval
from tests.integration.commands import assert_refused, call
from tests.integration.evaluating import QUESTIONS, make_models, write_questions
from tests.unit.generation.toy import toy_tokenizer

DESCRIPTION = "以下是关于解剖学的单项选择题，请直接给出正确答案的选项。\n\n"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return make_models(tmp_path_factory.mktemp("models"), toy_tokenizer())


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("questions")
    rows = list(itertools.islice(itertools.cycle(QUESTIONS), 9))
    write_questions(folder / "test/anatomy.csv", rows)
    write_questions(folder / "test/virology.csv", QUESTIONS[:4])
    write_questions(folder / "dev/anatomy_dev.csv", QUESTIONS[1:3])
    write_questions(folder / "dev/virology_dev.csv", QUESTIONS[3:])
    return folder


def config_of(folder, models, questions, **task):
    entry = {
        "task": "cmmlu",
        "data": [f"{questions}/test/*.csv"],
        "shots": [f"{questions}/dev/*.csv"],
        "num_shots": 2,
        **task,
    }
    settings = {
        "output_dir": str(folder / "out"),
        "models": [{"name": "toy", "checkpoint": str(models[1])}],
        "tasks": [entry],
        "device": "cpu",
    }
    path = folder / "eval.yaml"
    path.write_text(yaml.safe_dump(settings, allow_unicode=True), encoding="utf-8")
    return path


def items_of(folder, measure):
    lines = (folder / f"out/items/toy/{measure}.jsonl").read_text(encoding="utf-8").splitlines()
    return list(map(json.loads, lines))


def reference(hf, context, continuations):
    """Summed log-probabilities, encoded as lm-evaluation-harness does it."""
    model = AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(hf)
    found = []
    for continuation in continuations:
        head = tokenizer(context)["input_ids"]
        whole = tokenizer(context + continuation)["input_ids"]
        assert whole[: len(head)] == head
        with torch.no_grad():
            log_probs = model(torch.tensor([whole])).logits[0].log_softmax(-1)
        picked = log_probs[range(len(head) - 1, len(whole) - 1), whole[len(head) :]]
        found.append(picked.sum().item())
    return found


def test_log_probabilities_are_those_of_transformers(models, questions, tmp_path):
    done = call(
        "evaluate", "--config", config_of(tmp_path, models, questions, scoring=["letters", "texts"])
    )
    assert done.code == 0, done.err
    shots = [
        f"{q}\nA. {a}\nB. {b}\nC. {c}\nD. {d}\n答案： {right}\n\n"
        for q, a, b, c, d, right in QUESTIONS[1:3]
    ]
    question, *choices, right = QUESTIONS[0]
    listed = "\n".join(f"{letter}. {text}" for letter, text in zip("ABCD", choices, strict=True))
    context = f"{DESCRIPTION}{''.join(shots)}{question}\n{listed}\n答案："
    first = items_of(tmp_path, "cmmlu.letters")[0]
    assert first["prompt"] == context and first["response"]["num_shots"] == 2
    expected = reference(models[0], context, [f" {letter}" for letter in "ABCD"])
    assert first["response"]["log_probs"] == pytest.approx(expected, abs=1e-4)
    best = "ABCD"[expected.index(max(expected))]
    assert first["scores"]["accuracy"] == (best == right)
    texts = items_of(tmp_path, "cmmlu.texts")[0]
    solved = context
    for _, *answers, letter in QUESTIONS[1:3]:
        text = dict(zip("ABCD", answers, strict=True))[letter]
        solved = solved.replace(f"{answers[-1]}\n答案： {letter}", f"{answers[-1]}\n答案： {text}")
    expected = reference(models[0], solved, [f" {text}" for text in choices])
    assert texts["prompt"] == solved
    assert texts["response"]["log_probs"] == pytest.approx(expected, abs=1e-4)


def test_figures_are_counted_from_the_items(models, questions, tmp_path):
    assert call("evaluate", "--config", config_of(tmp_path, models, questions)).code == 0
    (measure,) = json.loads((tmp_path / "out/evaluation.json").read_text())["measures"]
    items = items_of(tmp_path, "cmmlu.letters")
    figures = {(f["metric"], f["group"]): f for f in measure["models"][0]["figures"]}
    right = sum(item["scores"]["accuracy"] for item in items)
    low, high = wilson_interval(right, len(items))
    micro = figures["accuracy", ""]
    assert micro["value"] == right / 13 and micro["num_used"] == 13
    assert (micro["interval"]["low"], micro["interval"]["high"]) == (low, high)
    groups = [figures["accuracy", name]["value"] for name in ("anatomy", "virology")]
    assert figures["accuracy (mean of groups)", ""]["value"] == sum(groups) / 2
    baselines = {f["metric"]: f["value"] for f in measure["baselines"]}
    assert baselines == {"accuracy of random answers": 0.25, "accuracy of always A": 3 / 13}


def test_a_killed_evaluation_resumes_to_the_same_bytes(models, questions, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "BLOCK", 4)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = {"scoring": ["letters", "generation"], "max_new_tokens": 4}
    for folder in (whole, killed):
        folder.mkdir()
        config_of(folder, models, questions, **options)
    assert call("evaluate", "--config", whole / "eval.yaml").code == 0
    ask, calls = running._ask, itertools.count()

    def dying(*words):
        if next(calls) == 5:
            raise KeyboardInterrupt
        return ask(*words)

    monkeypatch.setattr(running, "_ask", dying)
    assert call("evaluate", "--config", killed / "eval.yaml").code == 130
    assert not (killed / "out/items/toy/cmmlu.generation.jsonl").exists()
    partial = killed / "out/items/toy/.cmmlu.generation.partial"
    partial.write_bytes(partial.read_bytes() + b'[{"id": "half a li')
    monkeypatch.setattr(running, "_ask", ask)
    assert call("evaluate", "--config", killed / "eval.yaml").code == 0
    names = sorted(path.relative_to(whole) for path in whole.glob("out/items/**/*"))
    assert names == sorted(path.relative_to(killed) for path in killed.glob("out/items/**/*"))
    for name in [*names, "out/report.md"]:
        if (whole / name).is_file():
            assert (whole / name).read_bytes() == (killed / name).read_bytes(), name


def test_rows_that_cannot_be_used_are_counted(models, questions, tmp_path):
    rows = [
        *QUESTIONS,
        ("没有答案", "甲", "乙", "丙", "丁", ""),
        ("错的", "甲", "乙", "丙", "丁", "E"),
    ]
    rows.append(("多选", "甲", "乙", "丙", "丁", "AB"))
    path = write_questions(tmp_path / "test.csv", rows)
    words = config_of(tmp_path, models, questions, data=[str(path)], shots=[], num_shots=0)
    assert call("evaluate", "--config", words).code == 0
    (measure,) = json.loads((tmp_path / "out/evaluation.json").read_text())["measures"]
    (result,) = measure["models"]
    assert (result["num_used"], measure["num_total"]) == (5, 8)
    assert sum(result["dropped"].values()) == 3 and len(result["dropped"]) == 3
    assert "5 of 8 items" in (tmp_path / "out/report.md").read_text()


def test_results_of_another_task_are_not_mixed(models, questions, tmp_path):
    assert call("evaluate", "--config", config_of(tmp_path, models, questions)).code == 0
    changed = config_of(tmp_path, models, questions, num_shots=1)
    assert_refused(call("evaluate", "--config", changed), 78, "another task", "output_dir")


def test_damaged_items_are_refused(models, questions, tmp_path):
    path = config_of(tmp_path, models, questions)
    assert call("evaluate", "--config", path).code == 0
    items = tmp_path / "out/items/toy/cmmlu.letters.jsonl"
    items.write_bytes(items.read_bytes().replace(b'"accuracy": 0.0', b'"accuracy": 1.0'))
    assert_refused(call("evaluate", "--config", path), 73, "is not the file", "Remove both")


@pytest.mark.parametrize(
    ("change", "code", "fragments"),
    [
        ({"task": "cmlu"}, 78, ["'cmlu'", "did you mean cmmlu"]),
        ({"style": "chats"}, 78, ["style", "lm_eval", "opencompass"]),
        ({"num_shot": 5}, 78, ["num_shot", "num_shots"]),
        ({"data": ["/nowhere/*.csv"]}, 78, ["/nowhere/*.csv"]),
        ({"num_shots": 3}, 65, ["3 shots", "2 questions of"]),
        ({"shots": []}, 78, ["num_shots is 2", "shots lists no files"]),
        ({"group_key": "subject"}, 65, ["no question can be used", "'subject'"]),
    ],
)
def test_wrong_tasks_are_refused(models, questions, tmp_path, change, code, fragments):
    done = call("evaluate", "--config", config_of(tmp_path, models, questions, **change))
    assert_refused(done, code, *fragments)
    assert not (tmp_path / "out").exists()


def test_chat_style_needs_a_template(models, questions, tmp_path):
    path = config_of(tmp_path, models, questions, style="chat")
    assert call("evaluate", "--config", path).code == 0
    (measure,) = json.loads((tmp_path / "out/evaluation.json").read_text())["measures"]
    (result,) = measure["models"]
    assert result["dropped"] == {"a conversation, for which the model has no chat template": 13}
    assert result["figures"][0]["value"] is None
