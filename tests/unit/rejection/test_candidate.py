"""Candidates come back from Parquet as they were, and a damaged file is never taken for a whole."""

import dataclasses

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_chimed.errors import DataError
from megatron_chimed.rejection import candidate as module
from megatron_chimed.rejection.candidate import (
    REFERENCE,
    Candidate,
    read_candidates,
    write_candidates,
)
from tests.unit.rejection.answers import answer

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NUMBERS = st.none() | st.floats(allow_nan=False)
CANDIDATES = st.builds(
    Candidate,
    prompt=st.integers(0, 2**40),
    prompt_id=TEXTS,
    category=TEXTS,
    source=TEXTS,
    number=st.integers(0, 2**31 - 1),
    seed=st.none() | st.integers(0, 2**64 - 1),
    text=TEXTS,
    token_ids=st.lists(st.integers(0, 2**31 - 1), max_size=5).map(tuple),
    num_tokens=st.integers(0, 9),
    finish_reason=st.sampled_from([None, "stop", "length"]),
    score=NUMBERS,
    decision=TEXTS,
    log_prob=NUMBERS,
    first_log_prob=NUMBERS,
    stop_id=st.none() | st.integers(0, 2**31 - 1),
)


@settings(max_examples=60, deadline=None)
@given(candidates=st.lists(CANDIDATES, max_size=8))
def test_what_is_read_is_what_was_written(tmp_path_factory, candidates):
    path = tmp_path_factory.mktemp("round") / "candidates.parquet"
    write_candidates(path, candidates)
    assert read_candidates(path) == candidates


def test_another_reader_sees_the_same_columns(tmp_path):
    path = tmp_path / "candidates.parquet"
    candidates = [answer(1, 2, 0.1, log_prob=-3.25), answer(source=REFERENCE, text="休息。")]
    write_candidates(path, candidates, {"round": "3"})
    rows = pq.read_table(path).to_pylist()
    as_tuples = [{**row, "token_ids": tuple(row["token_ids"])} for row in rows]
    assert as_tuples == [dataclasses.asdict(item) for item in candidates]
    assert pq.read_schema(path).metadata == {b"round": b"3"}


def test_equal_candidates_give_equal_bytes_and_groups_change_nothing(tmp_path, monkeypatch):
    candidates = [answer(prompt, number, prompt / 7) for prompt in range(40) for number in range(3)]
    for name in ("a", "b"):
        write_candidates(tmp_path / name, candidates)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    monkeypatch.setattr(module, "GROUP_ROWS", 7)
    write_candidates(tmp_path / "c", candidates)
    assert pq.ParquetFile(tmp_path / "c").num_row_groups == 18
    assert read_candidates(tmp_path / "c") == candidates


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "candidates.parquet"
    write_candidates(path, [answer()])
    with pytest.raises(UnicodeEncodeError):
        write_candidates(path, [answer(), answer(text="\ud800")])
    assert read_candidates(path) == [answer()]
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_changed_byte_in_any_column_is_noticed(tmp_path):
    path = tmp_path / "candidates.parquet"
    write_candidates(path, [answer(prompt, text="头痛" * prompt) for prompt in range(200)])
    whole = path.read_bytes()
    group = pq.ParquetFile(path).metadata.row_group(0)
    for column in map(group.column, range(group.num_columns)):
        begin = column.dictionary_page_offset or column.data_page_offset
        place = begin + column.total_compressed_size - 1  # pages end with their data
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        with pytest.raises(DataError, match="damaged or truncated"):
            read_candidates(path)


@pytest.mark.parametrize("kept", [0, 3, 0.5, 0.99])
def test_a_file_that_was_cut_off_is_refused(tmp_path, kept):
    path = tmp_path / "candidates.parquet"
    write_candidates(path, [answer(number=number) for number in range(50)])
    whole = path.read_bytes()
    path.write_bytes(whole[: kept if isinstance(kept, int) else int(kept * len(whole))])
    with pytest.raises(DataError, match=f"{path} cannot be read as candidates"):
        read_candidates(path)


def test_a_file_of_an_earlier_version_has_no_stop_tokens(tmp_path):
    path = tmp_path / "earlier.parquet"
    write_candidates(path, [answer(stop_id=7)])
    pq.write_table(pq.read_table(path).drop_columns(["stop_id"]), path)
    assert read_candidates(path) == [answer()]


def test_a_file_with_other_columns_is_refused(tmp_path):
    path = tmp_path / "other.parquet"
    write_candidates(path, [answer()])
    table = pq.read_table(path).drop_columns(["seed"])
    changed = table.append_column("mood", pa.array(["good"]))
    pq.write_table(changed, path)
    with pytest.raises(DataError, match="columns differ in seed, mood"):
        read_candidates(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match="none.parquet does not exist"):
        read_candidates(tmp_path / "none.parquet")
