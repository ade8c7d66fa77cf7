"""Named entities: rows of three shapes, our prompt, three scores, and what is counted."""

import json

import pytest

from megatron_chimed.errors import ConfigError, DataError
from megatron_chimed.evaluation.tasks.entity_task import EntitiesTask
from tests.unit.evaluation.fake_model import FakeModel, by_metric, run

TYPES = {"疾病": ("dis",), "身体": ("bod",), "药物": ()}
TEXT = "患者肺炎，双肺可闻及湿啰音，予头孢。"
CCKS = {
    "originalText": TEXT,
    "entities": [
        {"start_pos": 2, "end_pos": 4, "label_type": "疾病", "overlap": 0},
        {"start_pos": 6, "end_pos": 7, "label_type": "身体", "overlap": 0},
        {"start_pos": 15, "end_pos": 17, "label_type": "药物", "overlap": 0},
    ],
}
CMEEE = {
    "text": TEXT,
    "entities": [
        {"start_idx": 2, "end_idx": 3, "type": "dis", "entity": "肺炎"},
        {"start_idx": 6, "end_idx": 6, "type": "bod", "entity": "肺"},
        {"start_idx": 15, "end_idx": 16, "type": "药物", "entity": "头孢"},
    ],
}
PLAIN = {"text": "头孢和头孢", "entities": [{"type": "药物", "text": "头孢"}]}


def write(path, *rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(path)


def measure_of(tmp_path, *rows, **changes):
    data = write(tmp_path / "dev.jsonl", *rows)
    (measure,) = EntitiesTask(name="ner", data=(data,), types=TYPES, **changes).measures()
    return measure


@pytest.mark.parametrize("row", [CCKS, CMEEE], ids=["ccks", "cmeee"])
def test_published_rows_have_the_same_entities(tmp_path, row):
    measure = measure_of(tmp_path, row)
    spans = {(s.type, TEXT[s.start : s.end]) for s in measure.items[0].document.spans}
    assert spans == {("疾病", "肺炎"), ("身体", "肺"), ("药物", "头孢")}


def test_a_text_file_of_objects_is_read_and_an_array_too(tmp_path):
    (tmp_path / "a.txt").write_text(json.dumps(CCKS, ensure_ascii=False) + "\n")
    (tmp_path / "b.json").write_text(json.dumps([CMEEE, CMEEE], ensure_ascii=False))
    data = (str(tmp_path / "a.txt"), str(tmp_path / "b.json"))
    (measure,) = EntitiesTask(name="ner", data=data, types=TYPES).measures()
    assert [entry.problem for entry in measure.entries] == [None] * 3


def test_entities_without_places_stand_for_every_place(tmp_path):
    measure = measure_of(tmp_path, PLAIN)
    assert [(s.start, s.end) for s in measure.items[0].document.spans] == [(0, 2), (3, 5)]


def test_the_prompt_lists_types_and_shots_by_type(tmp_path):
    shots = write(tmp_path / "train.jsonl", CCKS)
    measure = measure_of(tmp_path, PLAIN, shots=(shots,), num_shots=1)
    (item,) = run(measure, FakeModel(lambda prompt: "药物：头孢"))
    assert "实体类型：疾病、身体、药物。" in item.prompt
    assert (
        "assistant: 疾病：肺炎\n身体：肺\n药物：头孢\nuser: 文本：头孢和头孢\n实体：" in item.prompt
    )
    text = measure_of(tmp_path, PLAIN, shots=(shots,), num_shots=1, style="text")
    (item,) = run(text, FakeModel(lambda prompt: "药物：头孢"))
    assert item.prompt.endswith("药物：头孢\n\n文本：头孢和头孢\n实体：\n")


def test_three_scores_hallucinations_and_types(tmp_path):
    measure = measure_of(tmp_path, CCKS, PLAIN)
    answers = iter(["疾病：肺炎\n身体：双肺\n药物：头孢，青霉素", "我不知道怎么做"])
    items = run(measure, FakeModel(lambda prompt: next(answers)))
    figures = by_metric(measure.figures(items, 0))
    # Named: 肺炎, 双肺, 头孢, 青霉素; right: 肺炎, 肺, 头孢 and, in the other text, 头孢.
    assert figures["surface precision"].value == pytest.approx(2 / 4)
    assert figures["surface recall"].value == pytest.approx(2 / 4)
    assert figures["span recall"].value == pytest.approx(2 / 5)  # 头孢 is there twice
    assert figures["relaxed recall"].value == pytest.approx(3 / 5)  # 双肺 overlaps 肺
    assert figures["surface F1", "疾病"].value == 1
    assert figures["surface F1", "身体"].value == 0
    assert figures["entities not in the text"].value == pytest.approx(1 / 4)
    assert figures["unparsed_rate"].value == 0.5
    assert all(f.interval is not None and f.num_used for f in figures.values())
    assert items[1].details["problem"] is not None


def test_figures_are_the_same_without_any_answer(tmp_path):
    measure = measure_of(tmp_path, CCKS)
    items = run(measure, FakeModel(lambda prompt: "疾病：肺炎"))
    names = [(f.metric, f.group) for f in measure.figures(items, 0)]
    assert names == [(f.metric, f.group) for f in measure.figures([], 0)]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": TEXT}, "no text with a list of 'entities'"),
        ({"entities": []}, "no text with a list of 'entities'"),
        ({"text": TEXT, "entities": ["肺炎"]}, "an entity is no object"),
        ({"text": TEXT, "entities": [{"type": "dis"}]}, "neither a place nor a text"),
        ({"text": TEXT, "entities": [{"text": "肺炎"}]}, "has no type"),
        ({"text": TEXT, "entities": [{"type": "人名", "text": "肺炎"}]}, "does not list"),
        ({"text": TEXT, "entities": [{"type": "dis", "text": "感冒"}]}, "is not in the text"),
        ({"text": TEXT, "entities": [{"type": "dis", "start_pos": 2}]}, "a start but no end"),
        (
            {"text": TEXT, "entities": [{"type": "dis", "start_pos": 2, "end_pos": 99}]},
            "of 18. Check whether ends are inclusive",
        ),
        (
            {"text": TEXT, "entities": [{**CMEEE["entities"][0], "end_idx": 4}]},
            "but the entity is '肺炎'",
        ),
    ],
)
def test_a_bad_row_is_counted_with_its_reason(tmp_path, row, reason):
    measure = measure_of(tmp_path, row, CCKS)
    dropped, kept = run(measure, FakeModel(lambda prompt: "无"))
    assert reason in dropped.dropped and kept.dropped is None
    with pytest.raises(DataError, match="no row can be used"):
        measure_of(tmp_path, row)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": ()}, "data is empty"),
        ({"types": {}}, "types is empty"),
        ({"types": {"a": ("b",), "b": ()}}, "types name b twice"),
        ({"num_shots": 1}, "shots lists no files"),
        ({"limit": -1}, "limit is -1"),
    ],
)
def test_a_wrong_task_is_explained(changes, message):
    with pytest.raises(ConfigError, match=message):
        EntitiesTask(**{"name": "ner", "data": ("x",), "types": TYPES, **changes})
