"""Lines to texts: every kind of bad row is named by line and byte, every good one kept."""

import json

import pytest

from megatron_chimed.data import blocks
from megatron_chimed.data.blocks import iter_blocks
from megatron_chimed.data.formats.registry import detect_format
from megatron_chimed.data.rows import iter_texts, parse_block
from megatron_chimed.errors import ConfigError, DataError

GOOD = b'{"text": "good"}'


def parse(path, name):
    """Texts, bad rows as (line, byte, reason), and the counts of a whole file."""
    texts, bad, counts = [], [], [0, 0, 0]
    for block in iter_blocks([path]):
        parsed = parse_block(block, name, "text")
        texts += parsed.texts
        bad += [(row.line, row.offset, row.reason) for row in parsed.bad]
        for place, number in enumerate((parsed.rows, parsed.blank, parsed.empty)):
            counts[place] += number
    return texts, bad, tuple(counts)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "x"', "malformed JSON: Expecting ',' delimiter"),
        (b"text", "malformed JSON: Expecting value"),
        (b'{"text": "x"} y', "malformed JSON: Extra data"),
        (b'{"text": "a\tb"}', "malformed JSON: Invalid control character"),
        (b'{"text": "\xff"}', "invalid UTF-8: byte 0xFF at byte 10 of the line"),
        (b'{"body": "x"}', "no key 'text' (keys: 'body')"),
        (b"{}", "no key 'text' (keys: none)"),
        (b'{"text": 5}', "'text' is of type int, not a text"),
        (b'{"text": null}', "'text' is of type NoneType, not a text"),
        (b'{"text": ["x"]}', "'text' is of type list, not a text"),
        (b'["text"]', "the row is of type list, not an object"),
        (b'{"text": "a", "text": "b"}', "key 'text' occurs twice in one object"),
        (b'{"text": "a", "m": {"k": 1, "k": 1}}', "key 'k' occurs twice in one object"),
        (b'{"text": "a", "score": NaN}', "NaN is no JSON number"),
        (b'{"text": "a", "score": -Infinity}', "-Infinity is no JSON number"),
        (b'{"text": "a\\u0000b"}', "NUL character in the text"),
        (b'{"text": "a\x00b"}', "malformed JSON: Invalid control character"),
        (b'{"text": "a\\ud800b"}', "lone surrogate U+D800 in the text"),
        (b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "JSON nested too deeply"),
        (b'{"text": "a", "n": ' + b"9" * 5000 + b"}", "malformed JSON: Exceeds the limit"),
    ],
)
def test_a_bad_json_row_is_named_with_line_byte_and_reason(tmp_path, line, reason):
    path = tmp_path / "x.jsonl"
    path.write_bytes(GOOD + b"\n\n" + line + b"\n" + GOOD)
    texts, bad, counts = parse(path, "jsonl")
    assert texts == ["good", "good"]
    assert counts == (3, 1, 0)
    [(number, offset, found)] = bad
    assert (number, offset) == (3, len(GOOD) + 2)
    assert found.startswith(reason)
    with pytest.raises(DataError, match=rf"x\.jsonl:3:{len(GOOD) + 2} \(line:byte\): "):
        list(iter_texts([path]))


@pytest.mark.parametrize(
    ("line", "reason"),
    [(b"a\x00b", "NUL character"), (b"\xe5\x8f", "invalid UTF-8: byte 0xE5 at byte 0")],
)
def test_a_bad_text_row_is_named(tmp_path, line, reason):
    path = tmp_path / "x.txt"
    path.write_bytes(b"one\n" + line + b"\ntwo\n")
    texts, bad, _ = parse(path, "text")
    assert texts == ["one", "two"]
    assert bad[0][:2] == (2, 4) and bad[0][2].startswith(reason)


def test_blank_and_empty_rows_are_counted_apart(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'\n  \n{"text": ""}\n{"text": " \\n "}\n{"text": " a "}\n\r\n')
    assert parse(path, "jsonl") == ([" a "], [], (3, 3, 2))


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("last", [b"", b"end"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_line_ends_and_a_byte_order_mark_are_no_text(tmp_path, end, last, mark):
    path = tmp_path / "x.txt"
    path.write_bytes(mark + " 一".encode() + end + b"two" + end + last + (end if last else b""))
    texts, bad, counts = parse(path, "text")
    assert texts == [" 一", "two", "end"][: 3 if last else 2]
    assert bad == [] and counts == (len(texts), 0, 0)


def test_a_byte_order_mark_is_counted_in_byte_offsets(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes(b"\xef\xbb\xbfone\na\x00b\n")
    assert parse(path, "text")[1][0][:2] == (2, 7)


def test_blocks_cover_the_file_whatever_their_size(tmp_path, monkeypatch):
    path = tmp_path / "x.jsonl"
    rows = [json.dumps({"text": "汉" * (i % 50)}, ensure_ascii=False) for i in range(500)]
    rows[123] = "{"
    path.write_text("\n".join(rows), encoding="utf-8")
    whole = parse(path, "jsonl")
    assert whole[1][0][0] == 124
    for size in (1, 7, 100, 1000):
        monkeypatch.setattr(blocks, "BLOCK_BYTES", size)
        pieces = list(iter_blocks([path]))
        assert b"".join(piece.data for piece in pieces) == path.read_bytes()
        assert all(piece.data.endswith(b"\n") for piece in pieces[:-1])
        assert parse(path, "jsonl") == whole


def test_a_file_without_line_ends_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 100)
    monkeypatch.setattr(blocks, "MAX_LINE_BYTES", 1000)
    path = tmp_path / "x.txt"
    path.write_bytes(b"a\nb\n" + b"c" * 5000)
    with pytest.raises(DataError, match=r"x\.txt:3:4: a line longer than 1000 bytes"):
        list(iter_blocks([path]))


def test_several_files_follow_each_other(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.jsonl").write_text('{"text": "two"}\n')
    (tmp_path / "c.txt").write_text("")
    names = [tmp_path / name for name in ("a.txt", "b.jsonl", "c.txt")]
    assert list(iter_texts(names)) == ["one", "two"]
    assert [block.file for block in iter_blocks(names)] == [0, 1]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("x.jsonl", b"not json", "jsonl"),
        ("x.txt", b"plain", "text"),
        ("x.txt", b'\xef\xbb\xbf\n {"text": 1}', "jsonl"),
        ("x", b"", "text"),
        ("x.json", b'{"text": "a"}\n', "jsonl"),
    ],
)
def test_auto_looks_at_name_and_content(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    assert detect_format(tmp_path / name) == expected
    assert detect_format(tmp_path / name, "text") == "text"


def test_a_json_array_and_an_unknown_format_are_refused(tmp_path):
    (tmp_path / "x.json").write_text('[{"text": "a"}]')
    with pytest.raises(DataError, match="is one JSON array. Write one object per line"):
        detect_format(tmp_path / "x.json")
    with pytest.raises(ConfigError, match="--format 'csv' is none of auto, jsonl, text"):
        detect_format(tmp_path / "x.json", "csv")
