"""Lines that outlive a kill."""

import pytest

from megatron_chimed.errors import OutputError
from megatron_chimed.generation.jsonl_journal import JsonlJournal, read_journal


def test_lines_are_added_to_those_that_were_kept(tmp_path):
    path = tmp_path / "new" / ".kept"
    first = JsonlJournal(path, {"job": "热"})
    first.write([1, None])
    assert [*read_journal(path)] == [{"job": "热"}, [1, None]], "before it is closed"
    assert path.read_bytes() == '{"job": "热"}\n[1, null]\n'.encode()
    first.close()
    second = JsonlJournal(path, {"job": "another"})
    second.write("\u2028\n")
    second.close()
    assert [*read_journal(path)] == [{"job": "热"}, [1, None], "\u2028\n"]


def test_half_a_line_is_cut(tmp_path):
    path = tmp_path / ".kept"
    whole = '{"job": 1}\n"热"\n'.encode()
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        values = [{"job": 1}, "热"][: whole[:size].count(b"\n")]
        assert [*read_journal(path)] == values
        lines = JsonlJournal(path, {"job": 1})
        lines.write(3)
        lines.close()
        assert [*read_journal(path)] == [*(values or [{"job": 1}]), 3]


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / ".kept"
    for damaged in (b"{\n", b"\x00\x00\n", b"\xff\n"):
        path.write_bytes(b"1\n" + damaged + b"2\n")
        with pytest.raises(OutputError, match=r"\.kept:2 is damaged .*Remove the file"):
            [*read_journal(path)]
