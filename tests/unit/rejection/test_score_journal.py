"""Scores are kept slice by slice, and belong to their candidates."""

import contextlib
import dataclasses
import json

import pytest

from megatron_chimed.rejection.score_journal import ScoreJournal, remove_score_journal
from tests.unit.rejection.answers import answer

CANDIDATES = [answer(0, n) for n in range(6)]


@pytest.fixture
def output(tmp_path):
    return tmp_path / "candidates.parquet"


def keep(output, *slices, candidates=CANDIDATES):
    """Adds slices; what had been kept before."""
    with contextlib.closing(ScoreJournal(output, candidates)) as kept:
        found = kept.open()
        for scores in slices:
            kept.add(scores)
    return found


def test_each_slice_is_one_line_more(output, tmp_path):
    assert keep(output, [0.1, None], [2.5]) == []
    before = (tmp_path / ".candidates.parquet.scores").read_bytes()
    assert keep(output, [1 / 3]) == [0.1, None, 2.5]
    after = (tmp_path / ".candidates.parquet.scores").read_bytes()
    assert after.startswith(before)
    assert [*map(json.loads, after[len(before) :].splitlines())] == [[1 / 3]]
    assert keep(output) == [0.1, None, 2.5, 1 / 3]
    remove_score_journal(output)
    assert [*tmp_path.iterdir()] == []
    remove_score_journal(output)


def test_half_a_slice_is_scored_again(output, tmp_path):
    keep(output, [0.5, 1.5])
    with (tmp_path / ".candidates.parquet.scores").open("ab") as stream:
        stream.write(b"[2.5, 3.")
    assert keep(output, [7.0]) == [0.5, 1.5]
    assert keep(output) == [0.5, 1.5, 7.0]


def test_scores_of_other_candidates_are_thrown_away(output):
    keep(output, [0.5, 1.5])
    other = [*CANDIDATES[:-1], dataclasses.replace(CANDIDATES[-1], text="另一个")]
    assert keep(output, [9.0], candidates=other) == []
    assert keep(output, candidates=other) == [9.0]
    assert keep(output) == []
