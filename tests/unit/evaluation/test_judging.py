"""Judges: verdicts on stored answers, what they add up to, and people as judges."""

import contextlib
import csv
import json
from types import SimpleNamespace

import pytest

from megatron_chimed.errors import ConfigError, DataError
from megatron_chimed.evaluation.config import EvaluationConfig, JudgeEntry, ModelEntry
from megatron_chimed.evaluation.item_store import ItemStore
from megatron_chimed.evaluation.judging import running
from megatron_chimed.evaluation.judging.calls import NO_VERDICT, JudgeCall, read_verdict
from megatron_chimed.evaluation.judging.comparing import SURPLUS
from megatron_chimed.evaluation.judging.results import judgements_markdown
from megatron_chimed.evaluation.judging.rubric_task import RubricTask
from megatron_chimed.evaluation.report.judgements import judgements_html
from megatron_chimed.evaluation.requests import Refused
from megatron_chimed.evaluation.tasks.open_qa import OpenQATask
from tests.unit.evaluation.fake_model import FakeModel, run

ASPECTS = ("safety", "professionalism", "fluency")
WORKERS = SimpleNamespace(rank=0, on_rank_0=lambda action: action(), print=print)
URL = "http://127.0.0.1:9/v1"


def verdict(*values):
    return json.dumps(dict(zip(ASPECTS, values, strict=True)))


def shown(prompt):
    """The two answers that a judge sees."""
    first = prompt.split("<回答A>\n")[-1].split("\n</回答A>")[0]
    return first, prompt.split("<回答B>\n")[-1].split("\n</回答B>")[0]


def longer_wins(prompt):
    first, second = shown(prompt)
    winner = "tie" if len(first) == len(second) else "A" if len(first) > len(second) else "B"
    return f"<think>{{}}</think>理由：{{较长}} {verdict('tie', winner, 'tie')}"


@pytest.fixture
def measure(tmp_path):
    rows = [{"prompt": [f"问题{i}？"], "output": [f"答案{i}。"]} for i in range(6)]
    path = tmp_path / "qa.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (found,) = OpenQATask(name="qa", data=(str(path),)).measures()
    return found


def answers_of(measure, names=("long", "short")):
    spoken = {"long": "多喝水，多休息。", "short": "喝水。", "middle": "多喝水。", "mute": ""}
    return {
        name: {measure.name: run(measure, FakeModel(lambda _, name=name: spoken[name]))}
        for name in names
    }


def config_of(tmp_path, names, *judges):
    models = tuple(ModelEntry(name=name, endpoint=URL, model="m") for name in names)
    return EvaluationConfig(
        output_dir=str(tmp_path / "out"), models=models, tasks=({},), judges=judges
    )


def judge(name="judge", **changes):
    return JudgeEntry(name=name, endpoint=URL, model=name, **changes)


@pytest.fixture
def judged(monkeypatch, tmp_path):
    """Runs judges whose answers are functions of their prompts."""

    def act(measure, items, *judges, **spoken):
        models = {name: FakeModel(answer) for name, answer in spoken.items()}

        class Opened:
            def __init__(self, entry, *_):
                self.model = models[entry.name]

            def __enter__(self):
                return self.model

            def __exit__(self, *_):
                pass

        monkeypatch.setattr(running, "open_model", Opened)
        config = config_of(tmp_path, items, *judges)
        running.check_judges(config, [measure])
        return running.run_judges(config, [measure], items, WORKERS), models

    return act


def figures_of(subject):
    return {(f.metric, f.group): f for f in subject.figures}


def test_a_win_needs_both_orders_and_aspects_decide_in_order(measure, judged, tmp_path):
    (result,), models = judged(measure, answers_of(measure), judge(), judge=longer_wins)
    (subject,) = result.subjects
    figures = figures_of(subject)
    assert (subject.name, subject.num_total, subject.dropped) == ("long : short", 6, {})
    assert figures["wins", "professionalism"].value == 1.0
    assert figures["ties", "safety"].value == 1.0
    assert figures["wins", "priority"].value == 1.0
    assert figures["win rate", "safety"].value == 0.5
    assert figures["order effect", "professionalism"].value == 0.0
    assert figures["wins", "priority"].interval.method == "Wilson"
    assert result.num_calls == len(models["judge"].requests) == 12
    assert len(result.prompt_sha256) == 64
    assert len(result.dates) == 1
    lines = (tmp_path / "out/judgements/judge/qa.jsonl").read_text().splitlines()
    call = json.loads(lines[0])
    assert call["details"]["verdict"]["professionalism"] in ("a", "b")
    assert "问题0？" in call["prompt"]
    assert call["response"]["texts"][0].startswith("<think>")


def test_a_judge_that_prefers_the_first_shown_makes_ties_and_an_order_effect_of_1(measure, judged):
    (result,), _ = judged(
        measure, answers_of(measure), judge(), judge=lambda _: verdict("A", "A", "A")
    )
    figures = figures_of(result.subjects[0])
    for aspect in ASPECTS:
        assert figures["ties", aspect].value == 1.0
        assert figures["order effect", aspect].value == 1.0
        assert figures["order effect", aspect].interval.low < 0.5
    assert figures["length-controlled win rate", "priority"].value == pytest.approx(0.5)


def test_a_judge_without_json_is_asked_again_some_times_and_then_counted(measure, judged):
    (result,), models = judged(
        measure, answers_of(measure), judge(attempts=2), judge=lambda _: "我觉得 A 好"
    )
    (subject,) = result.subjects
    assert subject.dropped == {NO_VERDICT: 6}
    assert {f.value for f in subject.figures} == {None}
    requests = models["judge"].requests
    assert len(requests) == 24
    assert requests[12].prompt.history[0][1] == "我觉得 A 好"


def test_a_repeated_question_can_bring_the_verdict(measure, judged):
    def second_time(prompt):
        return longer_wins(prompt) if "我觉得" in prompt else "我觉得都好"

    (result,), _ = judged(measure, answers_of(measure), judge(), judge=second_time)
    assert result.subjects[0].dropped == {}


def test_every_pair_is_counted(measure, judged):
    items = answers_of(measure)
    items["short"] = {
        "qa": run(
            measure, FakeModel(lambda p: Refused(reason="time-out") if "问题1" in p else "好。")
        )
    }

    def says(prompt):
        if "问题2？" in prompt:
            return Refused(reason="HTTP 500")
        return "" if "问题3？" in prompt else longer_wins(prompt)

    (result,), _ = judged(measure, items, judge(max_pairs=4), judge=says)
    (subject,) = result.subjects
    figures = figures_of(subject)
    used = figures["win rate", "priority"].num_used
    assert used + sum(subject.dropped.values()) == subject.num_total == 6
    assert subject.dropped["not answered by short"] == 1
    assert subject.dropped[SURPLUS] == 1
    for group in (*ASPECTS, "priority"):
        counts = [figures[kind, group].value * used for kind in ("wins", "ties", "losses")]
        assert sum(counts) == pytest.approx(used)


def test_verdicts_resume_and_are_refused_for_other_answers(measure, judged):
    items = answers_of(measure)
    first, _ = judged(measure, items, judge(), judge=longer_wins)
    again, models = judged(measure, items, judge(), judge=lambda _: 1 / 0)
    assert again == first
    assert models["judge"].requests == []
    with pytest.raises(ConfigError, match="another calls"):
        judged(measure, answers_of(measure, ("long", "middle")), judge(), judge=longer_wins)


def test_three_models_have_strengths_in_the_order_of_their_wins(measure, judged):
    names = ("short", "long", "middle")
    (result,), _ = judged(measure, answers_of(measure, names), judge(), judge=longer_wins)
    strengths = {
        subject.name: figures_of(subject)["strength", "priority"].value
        for subject in result.subjects
        if subject.name in names
    }
    assert sorted(strengths, key=strengths.get) == ["short", "middle", "long"]
    assert sum(strengths.values()) == pytest.approx(0)


def test_people_fill_in_a_blind_sheet_and_calibrate_a_judge(measure, judged, tmp_path):
    items, people = answers_of(measure), JudgeEntry(name="doctors", people=str(tmp_path / "p"))
    (_, empty), _ = judged(measure, items, judge(), people, judge=longer_wins)
    assert empty.subjects[0].dropped == {NO_VERDICT: 6}
    sheet = tmp_path / "p/qa.tsv"
    text = sheet.read_text()
    assert not any(word in text for word in ("long", "short", "judge"))
    rows = list(csv.DictReader(text.splitlines(), delimiter="\t"))
    assert {row["answer_a"] for row in rows} == {"喝水。", "多喝水，多休息。"}
    lines = ["id\tsafety\tprofessionalism\tfluency"]
    for row in rows:
        better = "A" if len(row["answer_a"]) > len(row["answer_b"]) else "B"
        lines.append(f"{row['id']}\ttie\t{better}\ttie")
    lines[-1] = f"{rows[-1]['id']}\ttie\ttie\ttie"
    sheet.write_text("\n".join(lines) + "\n")
    (of_judge, of_people), _ = judged(measure, items, judge(), people, judge=longer_wins)
    figures = figures_of(of_people.subjects[0])
    assert figures["wins", "priority"].value == pytest.approx(5 / 6)
    assert ("order effect", "safety") not in figures
    kappas = {figure.metric: figure for figure in of_judge.agreement}
    assert kappas["kappa, safety"].value is None
    assert kappas["kappa, professionalism"].value == 0.0
    assert kappas["kappa, professionalism"].num_used == 6
    assert kappas["kappa, priority"].group == "doctors"
    assert "kappa, priority" in judgements_markdown([of_judge])
    assert "评审一致性" in judgements_html([of_judge, of_people])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("safety", "safe"), "no column 'safety'"),
        (lambda text: text + "0123456789ab\t\t\t\t\t\t\n", "no pair of this evaluation"),
        (lambda text: text + text.splitlines()[-1] + "\n", "there twice"),
        (lambda text: text.rstrip("\n").rstrip("\t") + "\tbest\t\t\n", "safety is 'best'"),
    ],
)
def test_a_wrong_sheet_is_one_message(measure, judged, tmp_path, change, message):
    people = JudgeEntry(name="doctors", people=str(tmp_path / "p"))
    judged(measure, answers_of(measure), people)
    sheet = tmp_path / "p/qa.tsv"
    sheet.write_text(change(sheet.read_text()))
    with pytest.raises(DataError, match=message):
        judged(measure, answers_of(measure), people)


RUBRIC = [
    {
        "prompt": [{"role": "user", "content": "胸痛怎么办？"}],
        "rubrics": [
            {"criterion": "建议立即就医", "points": 6, "tags": ["axis:safety"]},
            {"criterion": "说明病因", "points": 4},
            {"criterion": "推荐处方药", "points": -5, "tags": ["axis:safety"]},
        ],
        "example_tags": ["theme:emergency"],
    },
    {"prompt": "头痛？", "rubrics": [{"criterion": "语气", "points": -1}]},
    {"prompt": "头晕？", "rubrics": [{"criterion": "语气", "points": "x"}]},
]


def rubric_of(tmp_path, rows=RUBRIC):
    path = tmp_path / "rubric.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (found,) = RubricTask(name="hb", data=(str(path),)).measures()
    return found


def test_answers_are_graded_by_criterion(tmp_path, judged):
    measure = rubric_of(tmp_path)
    items = {"one": {"hb": run(measure, FakeModel(lambda _: "去医院，吃药。"))}}

    def grade(prompt):
        met = "就医" in prompt or "处方药" in prompt
        return json.dumps({"explanation": "…", "criteria_met": met})

    (result,), models = judged(measure, items, judge(), judge=grade)
    (subject,) = result.subjects
    figures = figures_of(subject)
    assert result.kind == "rubric"
    assert len(models["judge"].requests) == 4
    assert figures["rubric score", ""].value == pytest.approx(0.1)
    assert figures["rubric score", "axis:safety"].value == pytest.approx(1 / 6)
    assert figures["rubric score", "theme:emergency"].value == pytest.approx(0.1)
    assert figures["answers that reach the threshold", ""].value == 0.0
    assert figures["length", ""].value == 7
    assert subject.num_total == 3
    assert subject.dropped == {
        "no criterion with positive points": 1,
        "a criterion whose points are no number other than 0": 1,
    }


def test_an_ungraded_criterion_drops_and_counts_its_answer(tmp_path, judged):
    measure = rubric_of(tmp_path, RUBRIC[:1])
    items = {"one": {"hb": run(measure, FakeModel(lambda _: "去医院。"))}}
    (result,), _ = judged(
        measure,
        items,
        judge(),
        judge=lambda p: "?" if "说明病因" in p else '{"criteria_met": true}',
    )
    assert result.subjects[0].dropped == {NO_VERDICT: 1}
    assert figures_of(result.subjects[0])["rubric score", ""].value is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"x": "A"} 或 ```json\n{"x": "b"}\n```', "b"),
        ('{"x": "A"} {"y": "B"}', "a"),
        ('{"x": ["A"]}', None),
        ('{"x": "A"', None),
        ('<think>{"x": "A"}', None),
        ('{{"x": " Tie "}', "tie"),
        ("", None),
    ],
)
def test_the_last_whole_object_is_the_verdict(text, found):
    call = JudgeCall(id="1", group="", prompt="", fields=("x",), values=("a", "tie", "b"))
    assert read_verdict(call, text) == (None if found is None else {"x": found})


def test_braces_and_markers_in_answers_stay(measure, judged):
    items = answers_of(measure)
    items["short"] = {"qa": run(measure, FakeModel(lambda _: "{first} {question} %s"))}
    (result,), models = judged(measure, items, judge(), judge=longer_wins)
    assert "{first} {question} %s" in models["judge"].requests[0].prompt.question
    assert result.subjects[0].dropped == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attempts": 0}, "attempts is 0"),
        ({"aspects": ()}, "each aspect once"),
        ({"aspects": ("id",)}, "cannot be an aspect"),
        ({"people": "p"}, "endpoint and people"),
    ],
)
def test_wrong_judges_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        judge(**changes)


def test_a_judge_needs_measures_that_are_there_and_two_models(measure, tmp_path):
    for names, changes, message in (
        (("a", "b"), {"measures": ("qq",)}, "'qq' is no measure to judge"),
        (("a",), {}, "nothing to judge"),
    ):
        config = config_of(tmp_path, names, judge(**changes))
        with pytest.raises(ConfigError, match=message):
            running.check_judges(config, [measure])


def test_a_sheet_in_another_encoding_is_one_message(measure, judged, tmp_path):
    people = JudgeEntry(name="doctors", people=str(tmp_path / "p"))
    judged(measure, answers_of(measure), people)
    sheet = tmp_path / "p/qa.tsv"
    sheet.write_bytes(sheet.read_text().encode("gb18030"))
    with pytest.raises(DataError, match="no tab-separated table in UTF-8"):
        judged(measure, answers_of(measure), people)


def test_answers_on_other_ranks_are_read_from_the_files(measure, monkeypatch, tmp_path):
    items, config = answers_of(measure), config_of(tmp_path, ("long", "short"), judge())
    for name, of_model in items.items():
        store = ItemStore(tmp_path / "out", name, "qa", {})
        store.finish(of_model["qa"])
    model = FakeModel(longer_wins)
    monkeypatch.setattr(running, "open_model", lambda *_: contextlib.nullcontext(model))
    told = iter([[False], 0])  # what rank 0 says: not finished, no block is kept
    other = SimpleNamespace(rank=1, on_rank_0=lambda _: next(told), print=lambda _: None)
    assert running.run_judges(config, [measure], {}, other) == []
    assert len(model.requests) == 12
    assert not (tmp_path / "out/judgements").exists()
