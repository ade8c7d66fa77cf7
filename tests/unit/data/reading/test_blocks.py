"""Blocks: equal rows for any block size, bounded memory, damage reported with its location."""

import gzip
import json
import pickle
import tracemalloc

import pytest
import zstandard

from megatron_chimed.data.reading import expand_inputs, iter_blocks, row_block
from megatron_chimed.errors import DataError
from tests.unit.data.reading.corpora import COMPRESSIONS, CONTAINERS, dump, read, write

SIZES = (1, 7, 64, 1000)


def many_rows(count=60):
    return [
        {"question": f'{i}. "' + "汉\n" * (i % 9), "answer": "],{" * (i % 5) + "x"}
        for i in range(count)
    ]


DIALOGUE = "".join(f"id\t{i}\nP\t疼{'!' * (i % 40)}\nD\t哪里\n" for i in range(60)).encode()


@pytest.mark.parametrize("container", [*CONTAINERS, "dialogue"])
def test_rows_do_not_depend_on_the_block_size(tmp_path, monkeypatch, container):
    content = DIALOGUE if container == "dialogue" else CONTAINERS[container](many_rows())
    path = write(tmp_path / "x", content)
    [entry] = expand_inputs([path])
    assert entry.container == container
    whole = read(path)
    assert len(whole) == 60 and not any(isinstance(row, str) for _, _, row in whole) == (
        container != "dialogue"
    )
    for size in SIZES:
        monkeypatch.setattr(row_block, "BLOCK_BYTES", size)
        assert read(path) == whole
        cut = list(iter_blocks([entry]))
        assert [block.number for block in cut] == list(range(len(cut)))
        assert cut == list(iter_blocks([entry])) == pickle.loads(pickle.dumps(cut))
        if container in ("jsonl", "csv", "tsv", "dialogue"):
            assert b"".join(block.data for block in cut) == content
    if container != "parquet":
        assert len(cut) > 2


def test_files_follow_each_other_from_any_of_them(tmp_path):
    inputs = expand_inputs(
        [write(tmp_path / f"{i}.txt", f"line {i}\n".encode() * i) for i in range(4)]
    )
    assert [block.file for block in iter_blocks(inputs)] == [1, 2, 3]
    assert [block.file for block in iter_blocks(inputs, first_file=2)] == [2, 3]


def test_the_position_counts_bytes_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(row_block, "BLOCK_BYTES", 1 << 14)
    content = json.dumps({"text": "x" * 100}).encode() + b"\n"
    for compression in COMPRESSIONS.values():
        path = write(tmp_path / "x", compression(content * 5000))
        positions = [block.position for block in iter_blocks(expand_inputs([path]))]
        assert positions == sorted(positions) and positions[-1] == path.stat().st_size


LIMIT = 300
LONG = {
    "jsonl": {"text": "汉" * 500},
    "values": {"text": "汉" * 500},
    "array": {"text": ["]"] * 500},
    "keyed": {"text": "a", "more": '"' * 500},
    "csv": {"text": "\n" * 999, "more": "x"},
    "tsv": {"text": '"' * 999, "more": "x"},
}


@pytest.mark.parametrize("size", [50, 200, 1 << 20])
@pytest.mark.parametrize("container", LONG)
def test_a_row_over_the_limit_is_skipped_and_named(tmp_path, monkeypatch, container, size):
    monkeypatch.setattr(row_block, "BLOCK_BYTES", size)
    rows = [{"text": f"{i}", "more": "x"} for i in range(9)]
    for place in (4, 5, 8):
        rows[place] = LONG[container]
    path = write(tmp_path / "x", CONTAINERS[container](rows))
    whole, limited = read(path), read(path, max_row_bytes=LIMIT)
    assert [place[:2] for place in limited] == [place[:2] for place in whole]
    for place, (_, _, row) in enumerate(limited):
        if place in (4, 5, 8):
            assert "bytes, more than --max-row-bytes 300" in row
            found = int(row.removeprefix("a row of ").split()[0])
            assert abs(found - len(CONTAINERS[container]([rows[place]]))) < 60
        else:
            assert row == whole[place][2]


def test_a_long_dialogue_is_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(row_block, "BLOCK_BYTES", 100)
    text = b"id\t1\nP\tx\nD\ty\nid\t2\nP\t" + b"x" * 700 + b"\nD\ty\nid\t3\nP\tx\nD\ty\n"
    found = read(write(tmp_path / "x", text), max_row_bytes=LIMIT)
    assert [(line, offset) for line, offset, _ in found] == [(1, 0), (4, 13), (7, 725)]
    assert found[1][2] == "a row of 712 bytes, more than --max-row-bytes 300"


def test_a_parquet_row_over_the_limit_is_skipped(tmp_path):
    rows = [{"text": "a" * (500 if place in (2, 3) else 5)} for place in range(6)]
    found = read(write(tmp_path / "x", CONTAINERS["parquet"](rows)), max_row_bytes=LIMIT)
    assert [(line, offset) for line, offset, _ in found] == [(i + 1, i) for i in range(6)]
    assert [isinstance(row, str) for _, _, row in found] == [i in (2, 3) for i in range(6)]


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_huge_row_is_never_held(tmp_path, monkeypatch, compression):
    """100 MiB in one row, a limit of 1 MiB: nothing near the row's size is allocated."""
    monkeypatch.setattr(row_block, "BLOCK_BYTES", 1 << 16)
    row = b'{"text": "' + b"x" * (100 << 20) + b'"}\n'
    path = write(tmp_path / "x", COMPRESSIONS[compression](row + b'{"text": "y"}\n'))
    del row
    [entry] = expand_inputs([path])
    tracemalloc.start()
    try:
        found = list(iter_blocks([entry], max_row_bytes=1 << 20))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [bad.line for block in found for bad in block.oversized] == [1]
    assert found[-1].data == b'{"text": "y"}\n' and found[-1].first_line == 2
    # zst hands over all that a piece of compressed bytes stands for; no row is more regular.
    assert peak < (40 << 20 if compression == "zst" else 8 << 20)


@pytest.mark.parametrize("cut", [1, 9, 100, -1])
@pytest.mark.parametrize("compression", ["gz", "zst"])
def test_compressed_data_cut_off_are_an_error(tmp_path, compression, cut):
    content = COMPRESSIONS[compression](dump({"text": "汉" * 99}) * 3 + b"\n" + bytes(range(256)))
    path = write(tmp_path / "x.jsonl", content[: max(cut, 4) if cut > 0 else cut])
    with pytest.raises(DataError, match=r"x\.jsonl: the compressed data are truncated near byte"):
        read(path)


@pytest.mark.parametrize("compression", ["gz", "zst"])
def test_damaged_compressed_data_are_an_error(tmp_path, compression):
    content = bytearray(COMPRESSIONS[compression](b"".join(dump({"t": i}) for i in range(9999))))
    content[len(content) // 2 :] = b"\xff" * (len(content) - len(content) // 2)
    with pytest.raises(DataError, match="the compressed data are (damaged|truncated)"):
        read(write(tmp_path / "x", bytes(content)))


def test_compressed_members_and_frames_follow_each_other(tmp_path):
    one, two = b'{"text": "a"}\n{"te', b'xt": "b"}\n'
    skippable = b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc"
    zst = zstandard.ZstdCompressor().compress
    for content in (
        gzip.compress(one) + gzip.compress(two),
        skippable + zst(one) + skippable + zst(two),
    ):
        found = read(write(tmp_path / "x", content))
        assert [row for _, _, row in found] == [{"text": "a"}, {"text": "b"}]


@pytest.mark.parametrize(
    ("content", "place", "reason"),
    [
        (b'[{"a": 1}', "1:9", "the file ends before its last bracket is closed"),
        (b'[{"a": 1},\n', "2:11", "the file ends before its last bracket is closed"),
        (b'[{"a": 1},\n{"a": "x}]', "2:21", "the file ends within the row that starts in line 2"),
        (b'[{"a": 1},\n{"a": [1}]', "2:19", "'}' closes '[' in the row that starts in line 2"),
        (b'[{"a": 1} {"a": 2}]', "1:10", "'{' where ',' or ']' behind a row was expected"),
        (b'[{"a": 1},, {"a": 2}]', "1:10", "',' where a row was expected"),
        (b'[{"a": 1},]', "1:10", "']' where a row was expected"),
        (b'[{"a": 1}]\n[{"a": 2}]', "2:11", "'[' where the end of the file was expected"),
        (b'[{"a": 1}]\x00', "1:10", "byte 0 where the end of the file was expected"),
        (b'{"k": [{"text": "a"}], }', "1:23", "'}' where a key was expected"),
        (b'{"k": [{"text": "a"}], "l": {}}', "1:28", "'{' where an array of rows was expected"),
        (b'{"k": [{"text": "a"}] "l": []}', "1:22", "'\"' where ',' or '}' behind an array was"),
        (b'{"k": [{"text": "a"}], "l" []}', "1:27", "'[' where ':' behind a key was expected"),
        (b'{"k": [{"text": "a"}], "l', "1:25", "the file ends before its last bracket is closed"),
        (b'{\n"a": 1}\n5', "3:10", "'5' where an object was expected"),
        (b'text,a\n1,2\n"3,\n4\n', "3:11", "a quote that opens in this row is never closed"),
    ],
)
def test_damage_that_hides_rows_is_an_error_with_its_place(
    tmp_path, monkeypatch, content, place, reason
):
    for size in (1, 5, 1 << 20):
        monkeypatch.setattr(row_block, "BLOCK_BYTES", size)
        for name, start in (("x", b""), ("y", b"\xef\xbb\xbf")):
            line, byte = place.split(":")
            with pytest.raises(DataError) as caught:
                read(write(tmp_path / name, start + content))
            assert f"{name}:{line}:{int(byte) + len(start)} (line:byte): {reason}" in str(
                caught.value
            )
            assert "rows after it cannot be found" in str(caught.value)


def test_a_damaged_parquet_file_is_an_error(tmp_path):
    content = CONTAINERS["parquet"](many_rows())
    for damaged in (content[:-9], content[:4] + b"\xff" * 60 + content[64:]):
        with pytest.raises(DataError, match="the Parquet file is damaged"):
            read(write(tmp_path / "x", damaged))
