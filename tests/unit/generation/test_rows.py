"""Prompt files: what comes in comes out, malformed rows are named by file and line."""

import json

import pytest

from megatron_chimed.errors import DataError
from megatron_chimed.generation import Completion, read_rows, write_rows

GOOD = '{"prompt": "发热", "id": 7, "note": "\\u2028"}'


def test_rows_keep_order_and_keys(tmp_path):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(f'\ufeff{GOOD}\r\n\n{{"prompt": ""}}', encoding="utf-8")
    rows = read_rows(source)
    assert [row["prompt"] for row in rows] == ["发热", ""]
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
        (b'{"text": "a"}', 'no "prompt" where a text is needed'),
        (b'{"prompt": 3}', 'int "prompt" where a text is needed'),
        (b'{"prompt": "a", "completion": "b"}', 'a key "completion" already'),
        (b'{"prompt": "\xff"}', "invalid UTF-8: byte 0xFF"),
        (b'{"prompt": "\\ud800"}', "lone surrogate"),
        (b'{"prompt": "a", "other": "\\ud800"}', "lone surrogate"),
        (b'{"prompt": "a", "score": NaN}', "NaN is no JSON number"),
        (b'{"prompt": "a", "score": 1e999}', "malformed JSON: number is infinity"),
    ],
)
def test_malformed_row_is_named(tmp_path, line, message):
    source = tmp_path / "in.jsonl"
    source.write_bytes(GOOD.encode() + b"\n\n" + line)
    with pytest.raises(DataError, match=rf"in\.jsonl:3: .*{message}.*Each line is an object"):
        read_rows(source)


def test_file_without_rows_is_refused(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text("\n \n")
    with pytest.raises(DataError, match="in.jsonl holds no rows"):
        read_rows(source)
