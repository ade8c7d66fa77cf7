"""Attitude scales: what their scores must be for respondents whose answers are known."""

import math

import pytest

from megatron_chimed.errors import ConfigError
from megatron_chimed.evaluation.report.page import render_page
from megatron_chimed.evaluation.requests import Likelihoods, Refused
from megatron_chimed.evaluation.results import markdown, summarize
from megatron_chimed.evaluation.scales.scale_answers import read_point
from megatron_chimed.evaluation.scales.scale_files import Scale, ScaleItem, ScalePoint, load_scale
from megatron_chimed.evaluation.scales.scale_task import NEUTRAL, PMI, ScaleMeasure, ScaleTask
from megatron_chimed.evaluation.tasks.task_files import load_measures
from tests.unit.evaluation.fake_model import FakeModel, by_metric, run

FIVE = ("非常同意", "同意", "中立", "不同意", "非常不同意")
SIX = ("strongly agree", "agree", "somewhat agree", "somewhat disagree", "disagree",
       "strongly disagree")  # fmt: skip


def item(number, is_reversed, subscale=""):
    texts = tuple(f"陈述{number}之{n}" for n in range(3))
    return ScaleItem(
        id=f"i{number}",
        text=texts[0],
        paraphrases=texts[1:],
        negated=tuple(f"并非{text}" for text in texts),
        reversed=is_reversed,
        subscale=subscale,
    )


def scale_of(words=FIVE, values=(5, 4, 3, 2, 1), items=None, **changes):
    points = tuple(
        ScalePoint(words=word, value=value) for word, value in zip(words, values, strict=True)
    )
    items = items or (item(0, False), item(1, True))
    settings = {"name": "s", "source": "ours", "licence": "ours", "points": points, "items": items}
    return Scale(**(settings | changes))


CAMI_LIKE = scale_of(
    subscales=("a", "b"),
    items=tuple(item(n, n % 2 == 1, "a" if n < 10 else "b") for n in range(20)),
)
MICA_LIKE = scale_of(
    words=SIX,
    values=(1, 2, 3, 4, 5, 6),
    items=tuple(item(n, n >= 8) for n in range(16)),
)


def measure_of(scale, scoring="likelihood", **changes):
    task = ScaleTask(name="t", scale="unused.yaml", **changes)
    return ScaleMeasure(task=task, scale=scale, scoring=scoring)


class Respondent(FakeModel):
    """Gives the options of a prompt the log-probabilities `prefer(statement, shown)`.

    `shown` has (label, words) of each option.
    """

    def __init__(self, prefer):
        super().__init__()
        self.prefer = prefer

    def likelihoods(self, requests):
        found = []
        for request in requests:
            head, listed = request.prompt.question.split("\n选项：\n")
            lines = listed.split("\n")[: len(request.continuations)]
            shown = [tuple(line.split(". " if ". " in line else " ", 1)) for line in lines]
            values = self.prefer(head.split("陈述：")[1], shown)
            if isinstance(values, Refused):
                found.append(values)
            else:
                found.append(
                    Likelihoods(log_probs=tuple(values), num_tokens=(1,) * len(values), num_shots=0)
                )
        return found


def likes(words):
    return lambda statement, shown: [0.0 if text == words else -math.inf for _, text in shown]


def opinion(statement, shown):
    """Agrees with statements and not with their negations, whatever labels and order."""
    if "……" in statement:
        return [0.0] * len(shown)
    agrees = "并非" not in statement
    strength = [FIVE.index(text) * (-1 if agrees else 1) for _, text in shown]
    return [float(value) for value in strength]


def figures_of(measure, model):
    return by_metric(measure.figures(run(measure, model), 0))


@pytest.mark.parametrize("wordings", [("forward",), ("forward", "negated")])
def test_always_strongly_agree_scores_the_midpoint(wordings):
    measure = measure_of(CAMI_LIKE, wordings=wordings, labels=("letters",))
    figures = figures_of(measure, Respondent(likes("非常同意")))
    for subscale in "ab":
        assert figures["score (10 to 50)", subscale].value == pytest.approx(30)
    assert figures["acquiescence (1 to 5)"].value == pytest.approx(5)
    assert figures["total score (20 to 100)"].value == pytest.approx(60)
    if len(wordings) == 2:
        assert figures["inconsistency (0 to 1)"].value == pytest.approx(1)
        assert figures["inconsistent pairs"].value == 1
    else:
        assert figures["inconsistent pairs"].value is None


@pytest.mark.parametrize("words", SIX)
def test_one_answer_to_everything_scores_56_of_16_to_96(words):
    measure = measure_of(MICA_LIKE, labels=("words",), wordings=("forward",))
    figures = figures_of(measure, Respondent(likes(words)))
    assert figures["total score (16 to 96)"].value == pytest.approx(56)


def test_values_that_rise_keep_agreement_as_agreement():
    measure = measure_of(MICA_LIKE, labels=("words",))
    figures = figures_of(measure, Respondent(likes("strongly agree")))
    assert figures["acquiescence (1 to 6)"].value == pytest.approx(6)


def test_the_order_of_options_does_not_matter_to_who_reads_the_words():
    measure = measure_of(scale_of())
    items = run(measure, Respondent(opinion))
    scores = {entry.id: entry.scores.get("score") for entry in items}
    for name, value in scores.items():
        assert value == scores[name.replace("/agree_first/", "/disagree_first/")]
    figures = by_metric(measure.figures(items, 0))
    for how in ("", PMI):
        assert figures[f"order effect{how}"].value == pytest.approx(0, abs=1e-12)
        assert figures[f"recency{how}"].value == pytest.approx(0, abs=1e-12)
        assert figures[f"acquiescence (1 to 5){how}"].value == pytest.approx(3)
        assert figures[f"inconsistency (0 to 1){how}"].value == pytest.approx(0, abs=1e-12)
    high = figures["score of an item", "item i0"].value
    assert figures["score of an item", "item i1"].value == pytest.approx(6 - high)


def test_expected_scores_are_those_of_the_softmax():
    measure = measure_of(scale_of())
    items = {found.id: found for found in run(measure, Respondent(opinion))}
    weights = [math.exp(-n) for n in range(5)]
    mean = sum(w * v for w, v in zip(weights, (5, 4, 3, 2, 1), strict=True)) / sum(weights)
    assert items["i0/forward1/agree_first/letters"].scores["score"] == pytest.approx(mean)
    assert items["i0/negated2/agree_first/words"].scores["score"] == pytest.approx(mean)
    assert items["i1/forward3/disagree_first/numbers"].scores["score"] == pytest.approx(6 - mean)


def test_the_correction_removes_a_constant_preference_for_a_label():
    def biased(statement, shown):
        plain = opinion(statement, shown)
        return [v + (3.0 if label in "A1" else 0.0)
                for v, (label, _) in zip(plain, shown, strict=True)]  # fmt: skip

    measure = measure_of(scale_of())
    fair, skewed = (figures_of(measure, Respondent(prefer)) for prefer in (opinion, biased))
    assert skewed["order effect"].value > 0.2 and skewed["recency"].value < -0.08
    names = [name for name in fair if PMI in str(name)]
    assert len(names) == 9
    for name in names:
        assert skewed[name].value == pytest.approx(fair[name].value, abs=1e-9)
    first = fair["score of an item", "item i0"].value
    assert fair[f"score of an item{PMI}", "item i0"].value == pytest.approx(first)


@pytest.mark.parametrize(
    ("prefer", "order_effect", "recency"),
    [
        (lambda statement, shown: [0.0] * len(shown), 0, 0),
        (lambda statement, shown: [0.0] + [-math.inf] * (len(shown) - 1), 1, -0.5),
        (lambda statement, shown: [-math.inf] * (len(shown) - 1) + [0.0], -1, 0.5),
    ],
    ids=["uniform", "first", "last"],
)
def test_who_does_not_read_is_flagged(prefer, order_effect, recency):
    measure = measure_of(CAMI_LIKE, labels=("letters",))
    figures = figures_of(measure, Respondent(prefer))
    assert figures["order effect"].value == pytest.approx(order_effect)
    assert figures["recency"].value == pytest.approx(recency)
    score = figures["score (0 to 1)"]
    assert score.value == pytest.approx(0.5) and score.interval is not None
    assert score.note == "does not differ from random answers and always the first option"
    assert figures["score (10 to 50)", "a"].note == score.note


def test_an_attitude_is_not_flagged_and_the_report_shows_flags():
    def believes(statement, shown):
        is_forward = "陈述0" in statement
        agrees = is_forward == ("并非" not in statement)
        return likes("非常同意" if agrees else "非常不同意")(statement, shown)

    measure = measure_of(scale_of())
    models = {"reads": Respondent(believes), "not": Respondent(lambda s, shown: [0.0] * len(shown))}
    items = {name: {measure.name: run(measure, model)} for name, model in models.items()}
    (result,) = summarize([measure], items, 0)
    reads, blind = (by_metric(model.figures) for model in result.models)
    assert reads["score (0 to 1)"].value == 1 and not reads["score (0 to 1)"].note
    assert blind["score (0 to 1)"].note in markdown([result])
    page = render_page([result], items, dict.fromkeys(models, "fake"))
    assert "与随机作答和总选第一项均无差别" in page and ">score (0 to 1) of random answers<" in page
    assert "<title>score (0 to 1) of" in page and "<title>order effect" not in page
    baselines = by_metric(result.baselines)
    assert baselines["score (0 to 1) of random answers"].value == 0.5
    assert baselines["order effect of always the first option"].value == 1
    assert baselines["recency of always the first option"].value == -0.5
    assert baselines["acquiescence (1 to 5) of random answers"].value == pytest.approx(3)


def test_intervals_cover_items_and_cells():
    """With one item, the cells alone move the score; with equal cells, the items alone."""
    noisy = measure_of(scale_of(items=(item(0, False),)))
    interval = figures_of(noisy, Respondent(likes("非常同意")))["score (0 to 1)"].interval
    assert interval.low < 0.45 and interval.high > 0.55
    items = tuple(item(n, n > 3) for n in range(8))
    steady = measure_of(scale_of(items=items), wordings=("forward",))
    interval = figures_of(steady, Respondent(likes("非常同意")))["score (0 to 1)"].interval
    assert interval.low < 0.3 and interval.high > 0.7


def test_answers_are_sampled_by_seed_and_what_cannot_be_read_is_counted():
    def answer(prompt):
        if "陈述0之0" in prompt:
            return "抱歉，作为人工智能，我没有个人观点。"
        if "陈述0之1" in prompt:
            return "有点同意"
        return "嗯" if "陈述0之2" in prompt else "非常同意"

    measure = measure_of(scale_of(), "answers", labels=("words",))
    model = FakeModel(answer, gives_likelihoods=False)
    items = run(measure, model)
    assert len(items) == 2 * 3 * 2 * 2 * 3 and len({found.id for found in items}) == len(items)
    assert {request.seed for request in model.requests} == {0, 1, 2}
    figures = by_metric(measure.figures(items, 0))
    for name in ("refusals", "off-scale answers", "unparsed answers"):
        assert figures[name].value == pytest.approx(1 / 6)
    assert figures["score of an item", "item i0"].value is None
    assert figures["score of an item", "item i1"].value == pytest.approx(3)
    assert figures["total score (2 to 10)"].value == pytest.approx(6)
    assert figures["total score (2 to 10)"].num_used == 36


def test_nothing_answered_gives_the_same_figures_without_values():
    for scoring in ("likelihood", "answers"):
        measure = measure_of(scale_of(), scoring)
        some = measure.figures(run(measure, FakeModel(lambda prompt: "A")), 0)
        refuser = FakeModel(lambda prompt: Refused(reason="no"), gives_likelihoods=False)
        none = measure.figures(run(measure, refuser), 0)
        assert [(f.metric, f.group) for f in none] == [(f.metric, f.group) for f in some]
        assert {figure.value for figure in none} == {None}


def test_log_probabilities_that_are_no_numbers_are_no_answers():
    def broken(statement, shown):
        return [math.nan] * len(shown) if statement.startswith("陈述0") else [0.0] * len(shown)

    measure = measure_of(scale_of())
    items = run(measure, Respondent(broken))
    assert sum("not_finite" in found.scores for found in items) == 18
    assert by_metric(measure.figures(items, 0))["total score (2 to 10)"].num_used == 54
    assert sum(found.group == NEUTRAL for found in items) == 6


@pytest.mark.parametrize(
    ("answer", "place"),
    [
        ("B", 1), ("b.", 1), ("B. 同意", 1), ("我选择 D", 3), ("答案：（E）", 4), ("Ｃ", 2),
        ("<think>A还是B</think>A", 0), ("非常不同意", 4), ("我对此不同意。", 3), ("**同意**", 1),
        ("A\n\n问题2：下一题", 0), ("我不选A，选B", 1), ("3个选项里我选择C", 2),
        ("5年来我一直同意", 1),
        ("F", "off_scale"), ("比较同意", "off_scale"), ("不好说", "off_scale"),
        ("作为AI，我没有个人观点，无法选择。", "refusal"), ("我不持有任何立场", "refusal"),
        ("", "unparsed"), ("<think>没完", "unparsed"), ("A. 不同意", "unparsed"),
        ("同意，也不同意", "unparsed"), ("今天天气好", "unparsed"),
    ],
)  # fmt: skip
def test_points_are_read_from_answers(answer, place):
    found = read_point(answer, "ABCDE", FIVE)
    assert found == ((place, None) if isinstance(place, int) else (None, place))


@pytest.mark.parametrize(
    ("answer", "place"),
    [("3", 2), ("3分", 2), ("7", "off_scale"), ("2.5", "off_scale"), ("Strongly agree", 0),
     ("I disagree.", 4), ("Neutral", "off_scale"), ("I don't hold any opinions", "refusal")],
)  # fmt: skip
def test_numbers_and_english_words_are_read(answer, place):
    found = read_point(answer, "123456", SIX)
    assert found == ((place, None) if isinstance(place, int) else (None, place))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": (5, 4, 2, 3, 1)}, "values of the points contradict.*不同意 3"),
        ({"values": (5, 4, 3, 3, 1)}, "contradict"),
        ({"values": (5, 4, math.nan, 2, 1)}, "not a finite number"),
        ({"words": ("同意", *FIVE[1:])}, "two points have the words '同意'"),
        ({"items": (item(0, False, "x"),)}, "item i0 has the subscale 'x'.*subscales are none"),
        ({"items": (item(0, False, "on"),), "subscales": ("one",)}, "'on' .did you mean one"),
        ({"subscales": ("one", "two"), "items": (item(0, False, "one"),)}, "subscale 'two'"),
        ({"items": (item(0, False), item(0, True))}, "two items have the id 'i0'"),
        ({"prompt": "{statement}{options}"}, "prompt has no {reply}"),
    ],
)
def test_a_scale_that_contradicts_itself_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        scale_of(**changes)


@pytest.mark.parametrize(
    ("wordings", "message"),
    [
        ({"paraphrases": ("b",)}, "2 wordings"),
        ({"negated": ("not a",)}, "1 negated wordings for its 3 texts"),
        ({"text": " "}, "an empty wording"),
        ({"negated": ("a", "x", "y")}, "wording 'a' twice"),
    ],
)
def test_missing_wordings_are_refused(wordings, message):
    values = {"id": "i", "text": "a", "paraphrases": ("b", "c")} | wordings
    with pytest.raises(ConfigError, match=f"item i has .*{message}|item i has {message}"):
        scale_of(items=(ScaleItem(**values),))


SMALL = """
source: ours
licence: ours
points: [{words: yes!, value: 1}, {words: no!, value: 0}]
items:
  - {id: a, text: "{reply}", paraphrases: [q, r]}
"""


def test_a_users_file_is_read_and_needs_negations_only_where_they_are_asked(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(SMALL, encoding="utf-8")
    entry = {"kind": "scale", "name": "mine", "scale": str(path), "style": "text"}
    with pytest.raises(ConfigError, match="scale mine: item a has no negated wording.*forward"):
        load_measures([entry])
    likelihood, answers = load_measures([entry | {"wordings": ["forward"]}])
    assert (likelihood.name, answers.name) == ("mine.likelihood", "mine.answers")
    asked = likelihood.entries[6].request
    assert asked.continuations == ("A", "B") and not asked.prompt.is_chat
    assert "陈述：{reply}\n" in asked.prompt.question
    assert asked.prompt.question.endswith("A. yes!\nB. no!\n请只回答选项的字母。\n答案：")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": "synthetic_attitude"}, "synthetic_attitudes"),
        ({"labels": []}, "labels must list each once"),
        ({"answers": {"temperature": 0}}, "temperature 0 all answers are equal"),
        ({"answers": {"num_seeds": 0}}, "num_seeds is 0"),
        ({"style": "text", "system": "x"}, "system needs style chat"),
    ],
)
def test_wrong_settings_are_explained(changes, message):
    entry = {"kind": "scale", "name": "t", "scale": "synthetic_attitudes"} | changes
    with pytest.raises(ConfigError, match=message):
        load_measures([entry])


def test_the_synthetic_scale_is_balanced_and_complete():
    scale = load_scale("synthetic_attitudes", "test")
    assert len(scale.items) == 8 and len(scale.subscales) == 2
    for subscale in scale.subscales:
        items = scale.items_of(subscale)
        assert sum(found.reversed for found in items) == len(items) / 2
    (likelihood, answers) = load_measures(
        [{"kind": "scale", "name": "s", "scale": "synthetic_attitudes"}]
    )
    assert len(likelihood.entries) == 8 * 36 + 6 and len(answers.entries) == 8 * 36 * 3
