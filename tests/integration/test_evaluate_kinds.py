"""One evaluation of a checkpoint, a folder and a server on tasks of every kind, by its command."""

import json

import pytest
import yaml

from tests.integration.commands import assert_refused, call
from tests.integration.evaluating import make_models
from tests.unit.evaluation.stub_endpoint import chat, serving
from tests.unit.evaluation.test_entity_task import CCKS
from tests.unit.evaluation.test_open_qa import DIALOGUE, SINGLE, write
from tests.unit.evaluation.test_safety import PUBLISHED
from tests.unit.generation.toy import toy_tokenizer


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return make_models(tmp_path_factory.mktemp("models"), toy_tokenizer())


def config_of(folder, models, url):
    data = folder / "data"
    data.mkdir()
    (data / "texts.txt").write_text("患者发热伴咳嗽三天。\n多喝水。\n", encoding="utf-8")
    (data / "safety.json").write_text(json.dumps(PUBLISHED), encoding="utf-8")
    texts = {"kind": "perplexity", "name": "ppl", "data": [str(data / "texts.txt")], "window": 16}
    types = {"疾病": [], "身体": [], "药物": []}
    common = {"answers": {"max_new_tokens": 4}}
    tasks = [
        texts,
        {
            **common,
            "kind": "open_qa",
            "name": "talk",
            "data": [write(data / "talk.jsonl", DIALOGUE, SINGLE)],
            "turns": "all",
            "history": "own",
            "modes": ["standard", "chimed_compat"],
        },
        {
            **common,
            "kind": "entities",
            "name": "ner",
            "data": [write(data / "ner.jsonl", CCKS)],
            "types": types,
            "style": "text",
        },
        {
            **common,
            "kind": "numeric",
            "name": "calc",
            "data": [write(data / "calc.jsonl", {"question": "1+1", "answer": 2})],
            "is_chat": False,
        },
        {**common, "task": "safety_prompts", "data": [str(data / "safety.json")]},
    ]
    settings = {
        "output_dir": str(folder / "out"),
        "models": [
            {"name": "shards", "checkpoint": str(models[1]), "template": "chimed"},
            {"name": "folder", "folder": str(models[0]), "template": "chimed"},
            {"name": "served", "endpoint": url, "model": "m", "max_retries": 0},
        ],
        "tasks": tasks,
        "device": "cpu",
        "inference": {"precision": "fp32"},
    }
    path = folder / "eval.yaml"
    path.write_text(yaml.safe_dump(settings, allow_unicode=True), encoding="utf-8")
    return path


def items_of(folder, model, measure):
    lines = (folder / f"out/items/{model}/{measure}.jsonl").read_text(encoding="utf-8")
    return list(map(json.loads, lines.splitlines()))


def test_every_kind_of_model_is_measured_on_every_kind_of_task(models, tmp_path):
    with serving(chat("答案：2。疾病：肺炎")) as stub:
        config = config_of(tmp_path, models, stub.url)
        dry = call("evaluate", "--config", config, "--dry-run")
        assert dry.code == 0 and not stub.requests, dry.err
        done = call("evaluate", "--config", config)
        assert done.code == 0, done.err
        asked = len(stub.requests)
        again = call("evaluate", "--config", config)
        assert again.code == 0 and len(stub.requests) == asked, again.err
    for measure in ("ppl", "talk", "ner", "calc", "safety_prompts"):
        ours, theirs = (items_of(tmp_path, model, measure) for model in ("shards", "folder"))
        for one, other in zip(ours, theirs, strict=True):
            assert one["dropped"] is None and one["prompt"] == other["prompt"]
            if measure == "ppl":
                assert one["scores"]["log_prob"] == pytest.approx(
                    other["scores"]["log_prob"], rel=1e-5
                )
            else:
                assert one["response"] == other["response"]
    served = items_of(tmp_path, "served", "ppl")
    assert {item["dropped"] for item in served} == {
        "log-probabilities, which an endpoint does not give"
    }
    assert items_of(tmp_path, "served", "calc")[0]["scores"]["accuracy"] == 1
    results = json.loads((tmp_path / "out/evaluation.json").read_text(encoding="utf-8"))
    for measure in results["measures"]:
        of_models = [[f["metric"] for f in model["figures"]] for model in measure["models"]]
        assert of_models[0] == of_models[1] == of_models[2]
    report = (tmp_path / "out/report.md").read_text(encoding="utf-8")
    assert "2 of 2 items" in report and "bleu_4|mode:standard|tok:zh" in report


def test_a_server_that_is_down_is_an_error_before_the_first_model(models, tmp_path):
    with serving(chat("好")) as stub:
        config = config_of(tmp_path, models, stub.url)
    done = call("evaluate", "--config", config)
    assert_refused(done, 78, "does not answer", "Start the server")
    assert not (tmp_path / "out/items").exists()
