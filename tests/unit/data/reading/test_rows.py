"""Every malformed row is reported by line and byte, and all valid rows around it are kept."""

import io
import json
import math
import random
from datetime import date
from decimal import Decimal
from unittest import mock

import orjson
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from megatron_chimed.data.formats import row as row_module
from megatron_chimed.data.formats.row import RowError
from megatron_chimed.data.reading import iter_texts
from megatron_chimed.errors import DataError
from tests.unit.data.reading.corpora import CONTAINERS, dump, read, write

GOOD = b'{"text": "good"}'
DEEP = b"[" * 100_000 + b"]" * 100_000

BAD_VALUES = [
    (b'{"text": "\xff"}', "invalid UTF-8: byte 0xFF at byte 10 of the row"),
    (b'{"text": tru}', "malformed JSON: Expecting value"),
    (b'{"text": "a\tb"}', "malformed JSON: Invalid control character"),
    (b'{"text": "a\x00b"}', "malformed JSON: Invalid control character"),
    (b'{"text": "\\q"}', "malformed JSON: Invalid \\escape"),
    (b'{"text" "x"}', "malformed JSON: Expecting ':' delimiter"),
    (b'["text"]', "the row is of type list, not an object"),
    (b'{"text": "a", "text": "b"}', "key 'text' occurs twice in one object"),
    (b'{"text": "a", "te\\u0078t": "b"}', "key 'text' occurs twice in one object"),
    ('{"问": "a", "\\u95ee": "b"}'.encode(), "key '问' occurs twice in one object"),
    ('{"𠀀": "a", "\\ud840\\udc00": "b"}'.encode(), "key '𠀀' occurs twice in one object"),
    (b'{"\\"\\n": "a", "\\u0022\\u000a": "b"}', "key '\"\n' occurs twice in one object"),
    (b'{"text": "a", "m": [{"k": 1, "b": {"k": 2}, "k": 1}]}', "key 'k' occurs twice"),
    (b'{"text": "a", "score": NaN}', "NaN is not a JSON number"),
    (b'{"text": "a", "score": -Infinity}', "-Infinity is not a JSON number"),
    (b'{"text": "a", "score": 1e999}', "malformed JSON: number is infinity"),
    (b'{"text": "a\\u0000b"}', "NUL character in the text"),
    (b'{"a\\u0000b": 1, "text": "a"}', "NUL character in the text"),
    (b'{"text": "a\\ud800b"}', "lone surrogate in the text"),
    (b'{"text": "a\\udc00"}', "lone surrogate in the text"),
    (b'{"text": ' + DEEP + b"}", "JSON nested too deeply"),
    (b'{"text": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001, "JSON nested too deeply"),
]


@pytest.fixture(params=[1 << 20, 1])
def long_texts(request, monkeypatch):
    """With 1, all texts are read as if they were long."""
    monkeypatch.setattr(row_module, "LONG_TEXT_BYTES", request.param)


@pytest.mark.usefixtures("long_texts")
@pytest.mark.parametrize("container", ["jsonl", "array"])
@pytest.mark.parametrize(("row", "reason"), BAD_VALUES)
def test_a_bad_json_row_is_named_and_the_others_are_read(tmp_path, container, row, reason):
    separator = b"\n\n" if container == "jsonl" else b",\n\n"
    content = separator.join((GOOD, row, GOOD))
    path = write(tmp_path / "x", b"[" + content + b"]" if container == "array" else content)
    start = len(GOOD) + len(separator) + (container == "array")
    first, bad, last = read(path)
    assert first[2] == last[2] == {"text": "good"}
    assert bad[:2] == (3, start) and bad[2].startswith(reason)
    assert last[:2] == (5, start + len(row) + len(separator))
    with pytest.raises(DataError, match=rf"(?s)x:3:{start} \(line:byte\): .*Fix the row"):
        list(iter_texts([path]))


@pytest.mark.usefixtures("long_texts")
@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b'{"text": "x"', "malformed JSON: Expecting ',' delimiter"),
        (b"text", "malformed JSON: Expecting value"),
        (b'{"text": "x"} y', "malformed JSON: Extra data"),
        (b'{"text": "x}', "malformed JSON: Unterminated string"),
        (b"5", "the row is of type int, not an object"),
        (b"[" * 100_000, "JSON nested too deeply"),
    ],
)
def test_a_bad_line_of_json_is_named(tmp_path, row, reason):
    found = read(write(tmp_path / "x.jsonl", GOOD + b"\n" + row + b"\n" + GOOD))
    assert [place[:2] for place in found] == [(1, 0), (2, 17), (3, 18 + len(row))]
    assert found[1][2].startswith(reason)


written = st.one_of(
    st.text(),
    st.sampled_from(["\\u0041", "\\ud83d", "\\ude00", "\\", '\\"', "\\n", "\\/", "\\u00"]),
)


@settings(max_examples=300, deadline=None)
@given(parts=st.lists(written), is_escaped=st.booleans(), junk=st.binary(max_size=2))
def test_long_texts_are_read_as_the_parser_reads_short_ones(parts, is_escaped, junk):
    """Also where they are damaged."""
    text = "".join(parts).replace("\0", "")
    good = json.dumps({text: [text, {"a": text}, 1]}, ensure_ascii=is_escaped).encode()
    for value in (good, b'{"a": "' + text.encode() + junk.replace(b"\0", b"") + b'"}'):
        assume(b"\\u0000" not in value)
        try:
            expected = orjson.loads(value)
        except orjson.JSONDecodeError:
            expected = None
        with mock.patch.object(row_module, "LONG_TEXT_BYTES", 1):
            try:
                found = row_module.parse_json(value)
            except RowError:
                found = None
        assert found == expected


def test_repeated_keys_are_found_among_many(tmp_path):
    """More keys than are compared one by one, and keys that only look alike."""
    row = {f"k{i}": {"k1": i, "text": [{"k1": 0}, {"k1": 0}]} for i in range(99)} | {"text": "x"}
    content = dump(row)
    assert read(write(tmp_path / "a", content))[0][2] == row
    doubled = content[:-1] + b', "k50": 1}'
    assert read(write(tmp_path / "b", doubled))[0][2] == "key 'k50' occurs twice in one object"


@pytest.mark.parametrize(
    ("row", "reason"),
    [(b"a\x00b", "NUL character"), (b"\xe5\x8f", "invalid UTF-8: byte 0xE5 at byte 0 of the row")],
)
def test_a_bad_line_of_text_is_named(tmp_path, row, reason):
    found = read(write(tmp_path / "x.txt", b"one\n" + row + b"\ntwo\n"))
    assert [place[:2] for place in found] == [(1, 0), (2, 4), (3, 5 + len(row))]
    assert found[1][2].startswith(reason) and found[2][2] == "two"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"a", "1 fields in a table of 2 columns"),
        (b"a,b,c", "3 fields in a table of 2 columns"),
        (b'"a"b,c', "malformed table row: ',' expected after '\"'"),
        (b"a,\x00", "NUL character in the text"),
        (b"a,\xff", "invalid UTF-8: byte 0xFF at byte 2 of the row"),
    ],
)
def test_a_bad_table_row_is_named(tmp_path, row, reason):
    content = b'text,b\r\n"1,\n""2",2\r\n' + row + b'\r\n\r\n5" tube,5'
    found = read(write(tmp_path / "x", content))
    assert [place[:2] for place in found] == [(2, 8), (4, 20), (6, len(content) - 9)]
    assert found[0][2] == {"text": '1,\n"2', "b": "2"}
    assert found[1][2].startswith(reason)
    assert found[2][2] == {"text": '5" tube', "b": "5"}


def test_a_table_field_may_be_long(tmp_path):
    text = '"' * 300_000
    rows = [{"text": text, "b": "x"}]
    assert read(write(tmp_path / "x", CONTAINERS["csv"](rows)))[0][2] == rows[0]


def test_a_bad_parquet_row_is_named(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = pa.array([b"good", b"a\xff", b"a\x00", b"good"])
    column = pa.StringArray.from_buffers(4, *texts.buffers()[1:])
    nested = [[{"a": "b"}], [], None, [{"a": "\x00"}]]
    stream = io.BytesIO()
    pq.write_table(pa.table({"text": column, "more": pa.array(nested)}), stream)
    found = read(write(tmp_path / "x", stream.getvalue()))
    assert found[0][2] == {"text": "good", "more": nested[0]}
    reasons = ["invalid UTF-8 in the row", *["NUL character in the text"] * 2]
    assert [row for _, _, row in found[1:]] == reasons


TIMES = [1, 1 << 62]


def test_values_that_python_cannot_hold_are_texts_in_a_parquet_row(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    def numbers(kind):
        return pa.array(TIMES, pa.int64()).view(kind)

    columns = {
        "text": pa.array(["a", "b"]),
        "ns": numbers(pa.timestamp("ns")),
        "far": numbers(pa.timestamp("us")),
        "span": numbers(pa.duration("ns")),
        "price": pa.array([Decimal("1.50"), None]),
        "day": pa.array([date(2024, 1, 2)] * 2).dictionary_encode(),
        "deep": pa.array([[{"at": time} for time in TIMES]] * 2).cast(
            pa.list_(pa.struct([("at", pa.timestamp("ns"))]))
        ),
    }
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream)
    first, second = (row for _, _, row in read(write(tmp_path / "x", stream.getvalue())))
    assert (first["text"], second["text"]) == ("a", "b")
    assert first["ns"] == "1970-01-01 00:00:00.000000001"
    assert second["far"].startswith("<value out of range: ") and second["span"] == str(1 << 62)
    assert (first["price"], second["price"], first["day"]) == ("1.50", None, "2024-01-02")
    assert first["deep"][0] == {"at": "1970-01-01 00:00:00.000000001"}


def test_a_parquet_value_that_cannot_be_read_is_a_bad_row(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    times = pa.array([1, None], pa.int64()).view(pa.timestamp("us", "No/Where"))
    stream = io.BytesIO()
    pq.write_table(pa.table({"text": pa.array(["a", "b"]), "at": times}), stream)
    first, second = (row for _, _, row in read(write(tmp_path / "x", stream.getvalue())))
    assert first.startswith("a value that cannot be read (Cannot locate or parse timezone")
    assert isinstance(second, str) or second["text"] == "b"


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("last", [b"", b"end"])
def test_line_ends_and_blank_lines_are_no_text(tmp_path, end, last):
    path = write(tmp_path / "x", end.join((" 一".encode(), b"", b"  \t", b"two", last)))
    assert [row for _, _, row in read(path)] == [" 一", "two", *([last.decode()] if last else [])]


def test_texts_of_conversations_are_joined(tmp_path):
    conversation = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    pair = {"prompt": "p", "chosen": "c", "rejected": "r"}
    names = [
        write(tmp_path / "1", dump({"conversations": conversation, "system": "s"})),
        write(tmp_path / "2", b'{"text": " "}\n{"text": "t"}\n'),
        write(tmp_path / "3", dump([pair])),
        write(tmp_path / "4", dump([{"body": "named"}])),
    ]
    assert list(iter_texts(names[:3])) == ["s\na\nb", "t", "p\nc\nr"]
    assert list(iter_texts(names[3:], text_key="body")) == ["named"]
    with pytest.raises(DataError, match="4: no format fits its rows, whose keys are 'body'"):
        list(iter_texts(names))
    with pytest.raises(DataError, match=r"2:1:0 \(line:byte\): no key 'body' \(keys: 'text'\)"):
        list(iter_texts(names[1:2], name="text", text_key="body"))


def strict(text):
    """What a row must be, by the parser of the standard library; None: refused."""

    def unique(pairs):
        value = dict(pairs)
        if len(value) != len(pairs):
            raise ValueError("repeated key")
        return value

    def refuse(name):
        raise ValueError(name)

    def number(text):  # what 64 bits cannot hold is read as a float
        value = int(text)
        return value if -(1 << 63) <= value < 1 << 64 else float(text)

    def check(value):
        if isinstance(value, str):
            value.encode()
            if "\x00" in value:
                raise ValueError("NUL")
        if isinstance(value, float) and math.isinf(value):
            raise ValueError("infinity")
        for item in value if isinstance(value, list) else ():
            check(item)
        for key in value if isinstance(value, dict) else ():
            check(key), check(value[key])

    try:
        hooks = {"object_pairs_hook": unique, "parse_constant": refuse, "parse_int": number}
        value = json.loads(text.decode(), **hooks)
        check(value)
    except (ValueError, RecursionError):
        return None
    return value


PARTS = [
    *('{"', '": ', '"', ", ", "[", "]", "{", "}", ":", "\\", "\\u", "0000", "d800", "\\ud83d"),
    *("\\ude00", "text", "a", "b", "1", "-0", "2.5e3", "1e400", "true", "nul", "NaN", "\x00"),
    *("\n", "\t", " ", "汉", "\ufeff", '"a": 1', '{"text": "x"}', '"text": "y"', "\x7f", "99999"),
]


def mutated(generator, text):
    for _ in range(generator.randrange(4)):
        place = generator.randrange(len(text) + 1)
        part = generator.choice(PARTS).encode()
        cut = place + generator.randrange(3)
        text = text[:place] + part * generator.randrange(3) + text[cut:]
    if generator.random() < 0.1:
        place = generator.randrange(len(text) + 1)
        text = text[:place] + bytes([generator.randrange(256)]) + text[place:]
    return text


def random_value(generator, depth=0):
    kind = generator.randrange(7 if depth < 3 else 5)
    if kind < 3:
        return "".join(
            generator.choice(["汉", "a", '"', "\\", "\n", "😀", "]"]) for _ in range(kind)
        )
    if kind < 5:
        return generator.choice([0, -1, 2.5, None, True, 12345678901])
    if kind == 5:
        return [random_value(generator, depth + 1) for _ in range(generator.randrange(4))]
    keys = generator.sample(["a", "b", "text", "汉", '"', "\\"], generator.randrange(5))
    return {key: random_value(generator, depth + 1) for key in keys}


def test_fuzzed_lines_are_read_as_the_standard_library_reads_them(tmp_path):
    """20,000 damaged rows, fixed seed: the same values, and never a crash."""
    generator = random.Random(16)
    rows = []
    while len(rows) < 20_000:
        row = {"text": random_value(generator), "b": random_value(generator)}
        text = mutated(generator, dump(row, separators=generator.choice([None, (",", ":")])))
        if b"\n" not in text and text.strip():
            rows.append(text)
    path = write(tmp_path / "x.jsonl", GOOD + b"\n" + b"\n".join(rows))
    found = read(path)
    assert [line for line, _, _ in found] == list(range(1, len(rows) + 2))
    wanted = [strict(row) for row in rows]
    assert 2000 < sum(value is None for value in wanted) < 18_000
    for row, value, (_, _, got) in zip(rows, wanted, found[1:], strict=True):
        if isinstance(value, dict):
            assert got == value, row
        else:
            assert isinstance(got, str), row


def test_fuzzed_arrays_are_read_as_the_standard_library_reads_them(tmp_path):
    """What the library accepts as an array gives its elements; anything else is an error."""
    generator = random.Random(17)
    accepted = 0
    for _ in range(1500):
        rows = [{"text": random_value(generator)} for _ in range(generator.randrange(4))]
        indent = generator.choice([None, 1])
        content = b'[{"text": "first"},' + mutated(generator, dump(rows, indent=indent)[1:])
        try:
            found = [row for _, _, row in read(write(tmp_path / "x", content))]
        except DataError:
            found = ["refused"]
        value = strict(content)
        if value is not None and all(isinstance(row, dict) for row in value):
            assert found == value, content
            accepted += 1
        else:
            assert any(isinstance(row, str) for row in found), content
    assert 250 < accepted < 1250
