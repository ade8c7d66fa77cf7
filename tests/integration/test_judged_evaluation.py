"""The whole command with two served models and a judge, over real HTTP."""

import json

import yaml

from tests.unit.evaluation.stub_endpoint import chat, serving
from tools import evaluate

GRADED = {"prompt": "胸痛？", "rubrics": [{"criterion": "建议就医", "points": 5}]}


def respond(body):
    """Two models, and a judge who prefers what mentions a hospital."""
    question = body["messages"][-1]["content"]
    if body["model"] != "judge":
        return chat("请去医院。" if body["model"] == "good" else "不用管。")
    if "评分标准" in question:
        met = "请去医院" in question
        return chat(json.dumps({"explanation": "…", "criteria_met": met}))
    better = "A" if "请去医院" in question.split("</回答A>")[0] else "B"
    names = ("safety", "professionalism", "fluency")
    return chat("理由……" + json.dumps(dict.fromkeys(names, better)))


def test_evaluate_asks_models_then_judges_and_reports(tmp_path, capsys):
    (tmp_path / "qa.jsonl").write_text('{"prompt": ["头痛？"], "output": ["就医。"]}\n' * 3)
    (tmp_path / "hb.jsonl").write_text(json.dumps(GRADED) + "\n")
    with serving(respond) as stub:
        config = {
            "output_dir": str(tmp_path / "out"),
            "models": [{"name": n, "endpoint": stub.url, "model": n} for n in ("good", "bad")],
            "tasks": [
                {"kind": "open_qa", "name": "qa", "data": [str(tmp_path / "qa.jsonl")]},
                {"kind": "rubric", "name": "hb", "data": [str(tmp_path / "hb.jsonl")]},
            ],
            "judges": [
                {"name": "judge", "endpoint": stub.url, "model": "judge"},
                {"name": "doctors", "people": str(tmp_path / "sheets"), "measures": ["qa"]},
            ],
            "device": "cpu",
        }
        (tmp_path / "eval.yaml").write_text(yaml.safe_dump(config, allow_unicode=True))
        command = ["--config", str(tmp_path / "eval.yaml")]
        assert evaluate.main(command) == 0
        asked = len(stub.requests)
        found = json.loads((tmp_path / "out/evaluation.json").read_text())
        assert evaluate.main(command) == 0
        assert len(stub.requests) == asked
    assert asked == 2 * 4 + 3 * 2 + 2
    assert json.loads((tmp_path / "out/evaluation.json").read_text()) == found
    by_kind = {(one["judge"], one["measure"]): one for one in found["judgements"]}
    qa, hb = by_kind["judge", "qa"], by_kind["judge", "hb"]
    (wins,) = [
        f["value"]
        for f in qa["subjects"][0]["figures"]
        if (f["metric"], f["group"]) == ("wins", "priority")
    ]
    assert wins == 1.0
    assert [subject["figures"][0]["value"] for subject in hb["subjects"]] == [1.0, 0.0]
    assert by_kind["doctors", "qa"]["subjects"][0]["dropped"] == {"judge gave no verdict": 3}
    assert (tmp_path / "sheets/qa.tsv").exists()
    page = (tmp_path / "out/report.html").read_text()
    assert "长度校正胜率" in page
    assert "compared by judge" in (tmp_path / "out/report.md").read_text()
    assert "graded by judge" in capsys.readouterr().out
