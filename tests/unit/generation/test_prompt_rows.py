"""Prompt files: what comes in comes out, malformed rows are named by file and line."""

import json

import pytest

from megatron_chimed.data.formats.example import Conversation, Turn
from megatron_chimed.errors import DataError
from megatron_chimed.generation import Completion, read_rows, write_rows

GOOD = '{"prompt": "发热", "id": 7, "note": "\\u2028"}'


def test_rows_keep_order_and_keys(tmp_path):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(f'\ufeff{GOOD}\r\n\n{{"prompt": ""}}', encoding="utf-8")
    read = read_rows(source, is_chat=False)
    assert [row.asked for row in read] == ["发热", ""]
    assert [row.location for row in read] == [f"{source}:1", f"{source}:3"]
    rows = [row.row for row in read]
    completions = [
        Completion(prompt_id=0, candidate=0, token_ids=(1,), text="高", finish_reason="stop"),
        Completion(
            prompt_id=1, candidate=0, token_ids=(2,), text="\ufffd\n", finish_reason="length"
        ),
    ]
    write_rows(target, rows, completions)
    written = [json.loads(line) for line in target.read_bytes().decode().split("\n")[:-1]]
    assert written == [
        {"prompt": "发热", "id": 7, "note": "\u2028", "completion": "高", "finish_reason": "stop"},
        {"prompt": "", "completion": "\ufffd\n", "finish_reason": "length"},
    ]
    assert list(tmp_path.glob(".tmp-*")) == []


def test_candidates_are_numbered(tmp_path):
    completions = [
        Completion(prompt_id=i, candidate=j, token_ids=(1,), text=f"{i}{j}", finish_reason="stop")
        for i in (0, 1)
        for j in (0, 1)
    ]
    write_rows(tmp_path / "out.jsonl", [{"prompt": "a"}, {"prompt": "b"}], completions)
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").open()]
    assert [tuple(row.values()) for row in written] == [
        ("a", 0, "00", "stop"),
        ("a", 1, "01", "stop"),
        ("b", 0, "10", "stop"),
        ("b", 1, "11", "stop"),
    ]


def test_failed_write_leaves_the_old_output(tmp_path):
    target = tmp_path / "out.jsonl"
    target.write_text("old")
    completion = Completion(
        prompt_id=3, candidate=0, token_ids=(1,), text="a", finish_reason="stop"
    )
    with pytest.raises(IndexError):
        write_rows(target, [{"prompt": "a"}], [completion])
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"prompt": ', "malformed JSON"),
        (b'["prompt"]', "a list instead of a JSON object"),
        (b'{"text": "a"}', "no key 'prompt'"),
        (b'{"prompt": 3}', "'prompt' is of type int, not a text"),
        (b'{"prompt": "a", "completion": "b"}', 'a key "completion" already'),
        (b'{"prompt": "\xff"}', "invalid UTF-8: byte 0xFF"),
        (b'{"prompt": "\\ud800"}', "lone surrogate"),
        (b'{"prompt": "a", "other": "\\ud800"}', "lone surrogate"),
        (b'{"prompt": "a", "score": NaN}', "NaN is not a JSON number"),
        (b'{"prompt": "a", "score": 1e999}', "malformed JSON: number is infinity"),
    ],
)
def test_malformed_row_is_named(tmp_path, line, message):
    source = tmp_path / "in.jsonl"
    source.write_bytes(GOOD.encode() + b"\n\n" + line)
    with pytest.raises(DataError, match=rf"in\.jsonl:3: .*{message}.*Each line is an object"):
        read_rows(source, is_chat=False)


def test_file_without_rows_is_refused(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text("\n \n")
    with pytest.raises(DataError, match="in.jsonl holds no rows"):
        read_rows(source, is_chat=False)


QUESTION, ANSWER = {"from": "human", "value": "发热？"}, {"from": "gpt", "value": "多喝水。"}


def chat_row(tmp_path, row):
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")
    [read] = read_rows(source, is_chat=True)
    return read.asked


def test_a_question_comes_with_what_was_said_before_it(tmp_path):
    turns = (Turn("发热？", "多喝水。"), Turn("咳嗽？", ""))
    last = {"role": "user", "content": "咳嗽？"}
    messages = [{"role": "system", "content": "你是医生。"}, QUESTION, ANSWER, last]
    for row, system in (
        ({"prompt": "咳嗽？", "history": [["发热？", "多喝水。"]]}, ""),
        ({"conversations": [QUESTION, ANSWER, last]}, ""),
        ({"messages": messages}, "你是医生。"),
        ({"conversations": [QUESTION, ANSWER, last], "system": "S"}, "S"),
    ):
        assert chat_row(tmp_path, row) == Conversation(turns, system)


@pytest.mark.parametrize("row", [{"prompt": " "}, {"conversations": [QUESTION | {"value": ""}]}])
def test_a_blank_question_asks_nothing_and_is_no_mistake(tmp_path, row):
    assert chat_row(tmp_path, row) == ""


@pytest.mark.parametrize(
    ("row", "is_chat", "message"),
    [
        ({"prompt": "a", "system": "S"}, False, "'system' needs a chat template"),
        ({"prompt": "a", "history": [["b", "c"]]}, False, "'history' needs a chat template"),
        ({"conversations": [QUESTION]}, False, "'conversations' needs a chat template"),
        ({"conversations": [QUESTION, ANSWER]}, True, "no question after the last answer"),
        ({"conversations": [ANSWER]}, True, "role assistant where user was expected"),
        ({"prompt": "a", "history": "b"}, True, "'history' is a text but not a JSON list"),
        ({"prompt": "a", "images": ["b.png"]}, True, "'images' belongs to the prompt but cannot"),
        ({"prompt": "a", "prompt_cut": True}, True, 'a key "prompt_cut" already'),
        ({"question": "a"}, True, "no key 'prompt'"),
    ],
)
def test_what_no_prompt_can_say_is_named(tmp_path, row, is_chat, message):
    source = tmp_path / "in.jsonl"
    source.write_text(f"\n{json.dumps(row)}")
    with pytest.raises(DataError, match=rf"in\.jsonl:2: .*{message}.*Each line is an object"):
        read_rows(source, is_chat=is_chat)
