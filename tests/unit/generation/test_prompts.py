"""Every shape that asks becomes a prompt; what does not is named by file and line."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megatron_chimed.data.formats.example import Conversation, Turn
from megatron_chimed.data.formats.registry import FORMATS
from megatron_chimed.errors import DataError
from megatron_chimed.generation.prompts import Prompt, read_prompts


def lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def asked(question, *earlier, system=""):
    return Conversation((*(Turn(*pair) for pair in earlier), Turn(question, "")), system)


def one_prompt(folder, row):
    path = folder / "one.jsonl"
    path.write_text(lines([row]), encoding="utf-8")
    (prompt,) = read_prompts([str(path)])
    return prompt


USER = {"role": "user", "content": "问"}
DOCTOR = {"role": "assistant", "content": "答"}
SYSTEM = {"role": "system", "content": "你是医生"}


@pytest.mark.parametrize(
    ("row", "conversation", "reference"),
    [
        ({"prompt": "问"}, asked("问"), None),
        ({"prompt": "问", "completion": "答"}, asked("问"), "答"),
        ({"prompt": "问", "response": "答"}, asked("问"), "答"),
        ({"prompt": "问", "text": "别的"}, asked("问"), None),
        (
            {"prompt": "二", "history": [["问", "答"]], "system": "你是医生"},
            asked("二", ("问", "答"), system="你是医生"),
            None,
        ),
        ({"messages": [USER]}, asked("问"), None),
        ({"messages": [SYSTEM, USER, DOCTOR]}, asked("问", system="你是医生"), "答"),
        (
            {"messages": [SYSTEM, USER, DOCTOR, USER]},
            asked("问", ("问", "答"), system="你是医生"),
            None,
        ),
        (
            {"conversations": [{"from": "human", "value": "问"}], "completion": "答"},
            asked("问"),
            "答",
        ),
        ({"messages": [USER], "chosen": "好", "rejected": "坏"}, asked("问"), "好"),
        ({"messages": [USER, DOCTOR], "rejected_response": "坏"}, asked("问"), "答"),
        ({"prompt": "问", "chosen": "好", "rejected": "坏"}, asked("问"), "好"),
        (
            {"prompt": "问", "responses": ["坏", "好", "也好"], "ranks": [2, 1, 1]},
            asked("问"),
            "好",
        ),
        ({"instruction": "问", "input": "表", "output": "答"}, asked("问\n表"), "答"),
        ({"instruct": " 问", "output": "答"}, asked("问"), "答"),
        ({"prompt": ["一", "二"], "output": ["1", "2"]}, asked("二", ("一", "1")), "2"),
    ],
)
def test_a_row_that_asks_is_a_prompt(tmp_path, row, conversation, reference):
    assert one_prompt(tmp_path, row) == Prompt(
        id="one.jsonl:1", conversation=conversation, reference=reference
    )


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("text", "cmedqa2")])
def test_a_row_of_every_chat_format_is_a_prompt_with_a_reference(tmp_path, name):
    sample = FORMATS[name].sample
    path = tmp_path / "sample.jsonl"
    path.write_text(sample if isinstance(sample, str) else lines([sample]), encoding="utf-8")
    prompts = read_prompts([str(path)])
    for prompt in prompts:
        assert prompt.conversation.turns[-1].question
        assert prompt.conversation.turns[-1].answer == ""
        assert prompt.reference
    assert len({prompt.conversation for prompt in prompts}) == len(prompts)


def test_ids_and_categories_are_the_rows_own_or_made(tmp_path):
    path = tmp_path / "in.jsonl"
    rows = [
        {"qid": "a", "prompt": "一", "cate1": "内科"},
        {"qid": 7, "prompt": "二", "cate1": None},
        {"qid": "", "prompt": "三", "id": "other"},
        {"prompt": "四"},
    ]
    path.write_text("\n" + lines(rows), encoding="utf-8")
    prompts = read_prompts([str(path)], id_key="qid", category_key="cate1")
    assert [prompt.id for prompt in prompts] == ["a", "7", "in.jsonl:3", "in.jsonl:4"]
    assert [prompt.category for prompt in prompts] == ["内科", "", "", ""]


def test_a_row_that_asks_twice_gives_two_prompts_and_one_answered_twice_gives_one(tmp_path):
    path = tmp_path / "in.jsonl"
    rows = [
        {"id": "h", "questions": [["怎么吃？", "如何服用？"]], "answers": ["口服。"]},
        {"id": "c", "question": "缺钙吗？", "answer_1": "不一定。", "specialty_1": "儿科"}
        | {"adopted_1": True, "answer_2": "查一下。", "specialty_2": "", "adopted_2": False},
    ]
    path.write_text(lines(rows), encoding="utf-8")
    found = [
        (prompt.id, prompt.conversation.turns[0].question, prompt.reference)
        for prompt in read_prompts([str(path)])
    ]
    assert found == [
        ("h", "怎么吃？", "口服。"),
        ("h#2", "如何服用？", "口服。"),
        ("c", "缺钙吗？", "不一定。"),
    ]


def test_every_container_gives_the_same_prompts(tmp_path):
    rows = [{"id": str(n), "prompt": f"问{n}", "category": "内科"} for n in range(5)]
    text = lines(rows)
    (tmp_path / "a.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "b.json").write_text(json.dumps(rows), encoding="utf-8")
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "d.json").write_text(json.dumps({"内科": rows}), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "e.parquet")
    table = "id,prompt,category\n" + "".join(f"{n},问{n},内科\n" for n in range(5))
    (tmp_path / "f.csv").write_text(table, encoding="utf-8")
    expected = [Prompt(id=str(n), conversation=asked(f"问{n}"), category="内科") for n in range(5)]
    for path in sorted(tmp_path.iterdir()):
        assert read_prompts([str(path)]) == expected, path.name


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path):
    for name in ("x/dev/a.jsonl", "x/test/a.jsonl", "x/test/b.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(lines([{"prompt": name}]), encoding="utf-8")
    found = [prompt.id for prompt in read_prompts([str(tmp_path)])]
    assert found == ["dev/a.jsonl:1", "test/a.jsonl:1", "test/b.jsonl:1"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "q"', "malformed JSON"),
        ('{"question": "q"}', r"no key 'prompt' \(keys: 'question'\)\. A prompt is a question"),
        ('{"prompt": " "}', "no question"),
        ('{"prompt": 3}', "'prompt' is of type int, not a text"),
        ('{"text": "一段话"}', "no key 'prompt'"),
        ('{"prompt": "q", "id": ["a"]}', "'id' is of type list, not a text"),
        ('{"prompt": "q", "id": true}', "'id' is of type bool, not a text"),
        ('{"prompt": "q", "images": ["x.png"]}', "'images' belongs to the prompt"),
        ('{"prompt": "q", "rejected": "a"}', "'rejected' compares or judges answers"),
        ('{"messages": []}', "no question after the last answer in 'messages'"),
        ('{"messages": [{"role": "user", "content": ""}]}', "no question"),
        ('{"messages": [{"role": "tool", "content": "x"}]}', "the assistant calls tools"),
        ('{"instruction": "q", "output": ""}', "no answer"),
    ],
)
def test_a_row_that_does_not_ask_is_named(tmp_path, line, message):
    path = tmp_path / "in.jsonl"
    path.write_text('{"prompt": "q"}\n\n' + line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        read_prompts([str(path)])
    assert str(caught.value).startswith(f"{path}:3:17 (line:byte): ")


def test_plain_text_is_no_prompt(tmp_path):
    path = tmp_path / "in.txt"
    path.write_text("发热怎么办？\n", encoding="utf-8")
    with pytest.raises(DataError, match="in.txt:1:0 .*a line of text, which is not a question"):
        read_prompts([str(path)])


def test_an_id_twice_names_both_rows(tmp_path):
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first.write_text(lines([{"id": "x", "prompt": "一"}]), encoding="utf-8")
    second.write_text("\n" + lines([{"id": "x", "prompt": "二"}]), encoding="utf-8")
    with pytest.raises(DataError, match=f"the id 'x': {first}:1 and {second}:2"):
        read_prompts([str(first), str(second)])
    with pytest.raises(DataError, match=f"{first}:1 and {first}:1"):
        read_prompts([str(first), str(first)])


def test_no_prompt_at_all_is_refused(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("\n", encoding="utf-8")
    with pytest.raises(DataError, match=f"no prompt in {path}"):
        read_prompts([str(path)])


def test_real_files(real_data):
    dialogues = read_prompts([str(real_data / "CMtMedQA_test.json")], category_key="cate1")
    rows = json.loads((real_data / "CMtMedQA_test.json").read_text(encoding="utf-8"))
    assert len(dialogues) == len(rows) == 1144
    for number, (prompt, row) in enumerate(zip(dialogues, rows, strict=True), start=1):
        assert prompt.id == row.get("id", f"CMtMedQA_test.json:{number}")
        assert prompt.category == row.get("cate1", "")
        assert prompt.reference == row["output"].strip() or prompt.reference == row["output"]
        *earlier, last = prompt.conversation.turns
        assert [[turn.question, turn.answer] for turn in earlier] == row.get("history", [])
        assert last == Turn((row.get("instruct") or row["instruction"]).strip(), "")
    assert sum("instruct" in row for row in rows) == 144
    sft = read_prompts([str(real_data / "medical_sft_1K_format.jsonl")])
    assert len(sft) == 1000 and all(prompt.reference for prompt in sft)
    pairs = read_prompts([str(real_data / "dpo_zh_500.jsonl")])
    with open(real_data / "dpo_zh_500.jsonl", encoding="utf-8") as stream:
        assert [prompt.reference for prompt in pairs] == [json.loads(x)["chosen"] for x in stream]


def test_real_multiple_choice_questions(real_data):
    prompts = read_prompts([str(real_data / "cmmlu_medical")])
    assert len(prompts) == 7 * 5 + 1166
    assert prompts[0].id == "dev/anatomy.csv:1" and prompts[0].reference == "B.肺胸膜"
