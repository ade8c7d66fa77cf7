"""Multiple choice gives the log-probabilities and the accuracy of lm-evaluation-harness."""

import json

import pytest
import yaml

from megatron_chimed.evaluation.tasks.choice_questions import read_questions
from megatron_chimed.tokenizer import SentencePieceTokenizer
from tests.compare.environments import run_in
from tests.integration.commands import call
from tests.integration.evaluating import make_models

pytestmark = pytest.mark.compare

PER_SUBJECT = 29  # 7 subjects: 203 questions
HARNESS = """
    import json, os, sys
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.api.task import ConfigurableTask

    folder, files, shots = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
    tasks = [
        ConfigurableTask(config={
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": path, "dev": dev}},
            "test_split": "test",
            "fewshot_split": "dev",
            "fewshot_config": {"sampler": "first_n"},
            "output_type": "multiple_choice",
            "description": f"以下是关于{subject}的单项选择题，请直接给出正确答案的选项。\\n\\n",
            "doc_to_text": "{{Question.strip()}}\\nA. {{A}}\\nB. {{B}}\\nC. {{C}}\\nD. {{D}}\\n"
            "答案：",
            "doc_to_choice": ["A", "B", "C", "D"],
            "doc_to_target": "{{['A', 'B', 'C', 'D'].index(Answer)}}",
            "num_fewshot": shots,
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        })
        for name, (subject, path, dev) in files.items()
    ]
    model = HFLM(pretrained=folder, device="cpu", dtype="float32", batch_size=8)
    result = simple_evaluate(model=model, tasks=tasks, log_samples=True, bootstrap_iters=0)
    found = {}
    for name in files:
        samples = sorted(result["samples"][name], key=lambda sample: sample["doc_id"])
        found[name] = {
            "log_probs": [[r[0] for r in s["filtered_resps"]] for s in samples],
            "acc": result["results"][name]["acc,none"],
        }
    print(json.dumps(found))
"""


@pytest.mark.parametrize("shots", [0, 5])
def test_log_probabilities_and_accuracy(real_data, tmp_path, shots):
    tokenizer = SentencePieceTokenizer((real_data / "llama2_tokenizer.model").read_bytes())
    hf, ours = make_models(tmp_path, tokenizer)
    cmmlu = real_data / "cmmlu_medical"
    entry = {
        "task": "cmmlu",
        "data": [f"{cmmlu}/test/*.csv"],
        "shots": [f"{cmmlu}/dev/*.csv"],
        "num_shots": shots,
        "limit": PER_SUBJECT,
    }
    settings = {
        "output_dir": str(tmp_path / "out"),
        "models": [{"name": "ours", "checkpoint": str(ours)}],
        "tasks": [entry],
        "device": "cpu",
    }
    (tmp_path / "eval.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    assert call("evaluate", "--config", tmp_path / "eval.yaml").code == 0
    expected = run_in("lm-eval", HARNESS, hf, json.dumps(files(cmmlu, tmp_path)), shots)
    lines = (tmp_path / "out/items/ours/cmmlu.letters.jsonl").read_text().splitlines()
    items = list(map(json.loads, lines))
    assert len(items) == 7 * PER_SUBJECT
    for name, of_subject in expected.items():
        own = [item for item in items if item["group"] == name]
        assert len(own) == len(of_subject["log_probs"]) == PER_SUBJECT
        for item, log_probs in zip(own, of_subject["log_probs"], strict=True):
            assert item["response"]["num_shots"] == shots
            assert item["response"]["log_probs"] == pytest.approx(log_probs, abs=1e-4), item["id"]
        accuracy = sum(item["scores"]["accuracy"] for item in own) / len(own)
        assert accuracy == pytest.approx(of_subject["acc"])


def files(cmmlu, folder):
    """The same rows as JSON lines, which the harness reads without a loading script."""
    from megatron_chimed.evaluation.tasks.task_files import load_task

    subjects = load_task({"task": "cmmlu", "data": ["x"], "num_shots": 0}, "test").subjects
    found = {}
    for path in sorted(cmmlu.glob("test/*.csv")):
        written = []
        for split in ("test", "dev"):
            rows = read_questions([str(cmmlu / split / path.name)], group_key=None, subjects={})
            target = folder / f"{split}_{path.stem}.jsonl"
            lines = [
                json.dumps({"Question": q.question, **q.choices, "Answer": q.letters})
                for q in (item.question for item in rows[:PER_SUBJECT])
                if q is not None
            ]
            target.write_text("\n".join(lines) + "\n", encoding="utf-8")
            written.append(str(target))
        found[path.stem] = (subjects[path.stem], *written)
    return found
