"""Every container, plain or compressed, under any name, gives the same rows."""

import json

import pytest

from megatron_chimed.data.reading import expand_inputs
from megatron_chimed.errors import ConfigError, DataError
from tests.unit.data.reading.corpora import COMPRESSIONS, CONTAINERS, ROWS, dump, read, write

MARK = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    ("container", "compression"),
    [(a, b) for a in CONTAINERS for b in COMPRESSIONS if not b or a != "parquet"],
)
def test_every_container_gives_the_same_rows(tmp_path, container, compression):
    content = COMPRESSIONS[compression](CONTAINERS[container](ROWS))
    path = write(tmp_path / "name", content)
    [entry] = expand_inputs([path])
    assert (entry.container, entry.compression) == (container, compression)
    assert entry.size == len(content)
    rows = [row for _, _, row in read(path)]
    if container == "keyed":
        assert [row.pop("type") for row in rows] == ["一", "二", "二"]
    assert rows == ROWS


@pytest.mark.parametrize("container", ["jsonl", "values", "array", "keyed", "csv", "tsv"])
def test_lines_and_bytes_point_at_the_rows(tmp_path, container):
    content = CONTAINERS[container](ROWS)
    places = [(line, byte) for line, byte, _ in read(write(tmp_path / "a", content))]
    marked = read(write(tmp_path / "b", MARK + content))
    assert [(line, byte) for line, byte, _ in marked] == [(line, b + 3) for line, b in places]
    starts = [b"{", b'"' if container == "csv" else "发".encode()]
    for line, byte in places:
        assert line == content[:byte].count(b"\n") + 1
        if container not in ("csv", "tsv"):
            assert content[byte : byte + 1] == starts[0]
    assert len(set(places)) == len(ROWS)


def test_a_row_of_an_object_of_arrays_keeps_its_own_type(tmp_path):
    rows = [{"prompt": "a", "response": "b", "type": "own"}, {"prompt": "a", "response": "c"}]
    path = write(tmp_path / "x.json", dump({"键\n": rows}, indent=2))
    assert [row["type"] for _, _, row in read(path)] == ["own", "键\n"]


def test_dialogues_are_groups_of_lines(tmp_path):
    groups = ["id\t1\nP\t疼\nD\t哪里？", "id\t2\nP\tid\nD\tx", "id\t3\nD\ty"]
    path = write(tmp_path / "train.dialog", "\n".join(groups).encode() + b"\n\n")
    assert [row for _, _, row in read(path)] == groups
    assert [line for line, _, _ in read(path)] == [1, 4, 7]


@pytest.mark.parametrize(
    ("content", "container"),
    [
        (b"", "lines"),
        (b" \n\n", "lines"),
        (MARK, "lines"),
        (b"plain", "lines"),
        (b"a,b\n1,2\n", "lines"),
        (b"id\tquery\n1\t2\n", "lines"),
        ("[摘要] 传染病\n下一行".encode(), "lines"),
        (b"[1] reference\n[2] reference\n", "lines"),
        (b'["a"]\n["b"]\n', "jsonl"),
        (b'["a", "b"]', "array"),
        (b"[]", "array"),
        (b"[\n]", "array"),
        (b'[{"a": 1} {"a": 2}]', "array"),
        (b"[", "array"),
        (b"{", "jsonl"),
        (b"{}", "jsonl"),
        ("{注} 本文\n正文\n".encode(), "lines"),
        (b"{a}\n{b}\n", "lines"),
        ('{注}\n{"text": "a"}\n正文\n'.encode(), "lines"),
        (b'{a}\n{"text": "a"}\n{"text": "b"}\n', "jsonl"),
        (b'{ "text": tru}\n', "jsonl"),
        (b'{\n{"text": "a"}\n{"text": "b"}\n', "jsonl"),
        (b'{"text": "a"\n{"text": "b"}\n', "jsonl"),
        (b'damaged\n{"text": "a"}\n{"text": "b"}\n', "jsonl"),
        (b'{"text": "a"}', "jsonl"),
        (b'{"conversations": [{"from": "human", "value": "a"}]}', "jsonl"),
        (b'{\n"text": "a"}\n{"text":\n"b"}', "values"),
        (b'{"data": [{"text": "a"}]}', "keyed"),
        (b'{"data": [{"text": "a"}', "keyed"),
        (b"text,label\na,1\n", "csv"),
        (b"text\tlabel\na\t1\n", "tsv"),
        (b"question,answer", "csv"),
        ("问\t答\n1\t2".encode(), "tsv"),
    ],
)
def test_content_decides(tmp_path, content, container):
    for name in ("x", "x.txt", "x.dialog"):
        [entry] = expand_inputs([write(tmp_path / name, content)])
        assert entry.container == container


def test_a_long_first_row_is_told_apart_by_its_line_ends(tmp_path):
    long = "汉" * (1 << 19)
    for indent, container in ((None, "jsonl"), (1, "values")):
        path = write(tmp_path / "x", dump({"text": "a", "more": long}, indent=indent) + b"\n")
        assert expand_inputs([path])[0].container == container
    rows = [{"prompt": "a", "response": answer} for answer in ("b", long)]
    path = write(tmp_path / "x", dump({"key": rows}))
    assert [row["type"] for _, _, row in read(path)] == ["key", "key"]


@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.jsonl.gz"])
def test_text_under_a_json_name_is_malformed_json(tmp_path, name):
    content = b"no json\n"
    if name.endswith(".gz"):
        content = COMPRESSIONS["gz"](content)
    [(_, _, reason)] = read(write(tmp_path / name, content))
    assert reason.startswith("malformed JSON: Expecting value")


def test_a_compressed_parquet_file_is_refused(tmp_path):
    path = write(tmp_path / "x.parquet.gz", COMPRESSIONS["gz"](CONTAINERS["parquet"](ROWS)))
    with pytest.raises(DataError, match="is a Parquet file compressed as .gz.*Decompress it"):
        expand_inputs([path])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", "标题,内容\na,b\n".encode(), "x.csv: no format knows this table.*'标题,内容'"),
        ("x.csv", b"\xb1\xea\xcc\xe2,text\n", "is not in utf-8.*Pass --encoding gb18030"),
        ("x.csv", b"text,text\na,b\n", "no format knows this table"),
        ("x.parquet", b"text", "does not start like a Parquet file"),
        ("x.gz", b"text\n", "does not start like a .gz file .first bytes 74657874"),
        ("x.zst", b"", "does not start like a .zst file"),
        ("x.jsonl.zst", b"\x1f\x8b\x08\x00", "does not start like a .zst file"),
    ],
)
def test_a_name_that_the_content_belies_is_an_error(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message):
        expand_inputs([write(tmp_path / name, content)])


def test_a_column_named_by_the_user_makes_a_table_known(tmp_path):
    path = write(tmp_path / "x.csv", "标题,内容\na,b\n".encode())
    assert expand_inputs([path], text_key="内容")[0].columns == ("标题", "内容")
    single = write(tmp_path / "y.csv", "内容\nb\n".encode())
    assert expand_inputs([single], text_key="内容")[0].container == "csv"


def test_names_are_files_folders_and_patterns(tmp_path):
    for name in ("b/2.txt", "b/1.jsonl", "b/c/3.txt.gz", "a.txt", "b/.hidden/x.txt", "b/README.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        content = b"text\n" if not name.endswith("gz") else COMPRESSIONS["gz"](b"text\n")
        write(tmp_path / name, content)

    def names(*inputs):
        paths = (entry.path for entry in expand_inputs([tmp_path / name for name in inputs]))
        return [str(path.relative_to(tmp_path)) for path in paths]

    assert names("b") == ["b/1.jsonl", "b/2.txt", "b/c/3.txt.gz"]
    assert names("b/*.txt", "a.txt", "a.txt") == ["b/2.txt", "a.txt", "a.txt"]
    assert names("**/*.txt") == ["a.txt", "b/2.txt"]
    assert names("b/README.md") == ["b/README.md"]
    bracket = write(tmp_path / "[1].txt", b"x")
    assert [entry.path for entry in expand_inputs([bracket])] == [bracket]


@pytest.mark.parametrize("name", ["nothing", "*.nothing", "empty"])
def test_a_name_without_files_is_an_error(tmp_path, name):
    (tmp_path / "empty").mkdir()
    message = "is a folder without .csv" if name == "empty" else "is not a file or folder, and no"
    with pytest.raises(ConfigError, match=f"'.*' {message}"):
        expand_inputs([tmp_path / name])


def test_each_member_of_an_object_of_rows_has_its_place_and_its_own_error(tmp_path):
    members = ['{"text": "一"}', '{"text": NaN}', '{"text": "三"}', "4", '{"text": "五"}']
    names = ["a", "b", "\\u0061", "d", "e"]
    lines = (f'"{name}": {value}' for name, value in zip(names, members, strict=True))
    content = ("{\n" + ",\n".join(lines) + "\n}\n").encode()
    found = read(write(tmp_path / "x.json", content))
    assert [row for _, _, row in found] == [
        {"text": "一"},
        "NaN is not a JSON number",
        "repeated key 'a'",
        "the row is of type int, not an object",
        {"text": "五"},
    ]
    assert [line for line, _, _ in found] == [2, 3, 4, 5, 6]
    assert [content[offset:][:9] for _, offset, _ in found] == [
        value.encode()[:9] if len(value) > 1 else b'4,\n"e": {' for value in members
    ]


def test_objects_one_after_the_other_are_rows_whatever_is_in_them(tmp_path):
    row = {"question": {"text": "x"}, "answer": {"text": "y"}}
    content = (json.dumps(row) + "\n").encode() * 2
    assert [row for _, _, row in read(write(tmp_path / "x.jsonl", content))] == [row, row]


def test_an_object_of_rows_that_is_damaged_is_one_bad_row(tmp_path):
    content = b'{"a": {"text": "x"}, "b" {"text": "y"}}'
    [(line, offset, reason)] = read(write(tmp_path / "x.json", content))
    assert (line, offset) == (1, 0) and reason.startswith("malformed JSON")


def test_an_object_of_rows_may_be_no_longer_than_a_row(tmp_path):
    rows = ", ".join(f'"{number}": {{"text": "x"}}' for number in range(9))
    path = write(tmp_path / "x.json", f"{{{rows}}}".encode())
    [(_, _, reason)] = read(path, max_row_bytes=50)
    assert "more than --max-row-bytes 50" in reason
