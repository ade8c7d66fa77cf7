"""Sequence lengths, how samples are filled, and their plots."""

import struct

import numpy as np
import pytest

from megatron_chimed.data.datasets.prefix import open_prefix
from megatron_chimed.data.datasets.sidecar import SourceSummary
from megatron_chimed.data.inspection import statistics
from megatron_chimed.data.inspection.plots import plot_lengths, plot_sources
from megatron_chimed.data.inspection.ranking_verification import count_ties
from megatron_chimed.data.inspection.statistics import fill_rows, length_rows
from tests.unit.data.packed_prefixes import answered, write_conversations, write_groups
from tests.unit.data.prefixes import numbered_documents, write_prefix


def source(name, first, last, **counts):
    return SourceSummary(file=name, bytes=1, rows=last - first, documents=(first, last), **counts)


def test_lengths_are_summed_up_by_source(tmp_path):
    sources = (source("a.txt", 0, 2), source("b.txt", 2, 3))
    prefix = write_prefix(tmp_path / "data", [[5, 6, 2], [7, 2], [2]], sources=sources)
    rows = length_rows(open_prefix(str(prefix)))
    assert [(r.name, r.sequences, r.tokens) for r in rows] == [
        ("a.txt", 2, 5),
        ("b.txt", 1, 1),
        ("all", 3, 6),
    ]
    assert rows[-1].mean == 2.0 and rows[-1].quantiles == (1, 1, 2, 3, 3, 3)


def test_sources_that_do_not_fit_are_summed_up_as_one(tmp_path):
    prefix = write_prefix(tmp_path / "data", [[5], [7, 2]], sources=(source("a.txt", 0, 1),))
    assert [row.name for row in length_rows(open_prefix(str(prefix)))] == ["all"]


def test_packing_and_its_losses_are_measured(tmp_path):
    lengths = [6, 6, 4, 4, 20]
    masks = [mask for _, mask in answered(lengths)]
    prefix = open_prefix(write_conversations(tmp_path / "data", answered(lengths)))
    alone, dropped, cut = fill_rows(prefix.name, prefix, seq_length=10, seed=1)
    assert (alone.samples, alone.padding) == (5, pytest.approx(1 - 30 / 50))
    assert (dropped.samples, dropped.padding, dropped.segments) == (2, 0.0, 2.0)
    assert dropped.learned == pytest.approx(sum(map(sum, masks[:4])) / 20)
    assert dropped.notes[0].endswith("1 of 5 conversations are longer than 10 tokens: 1 dropped")
    assert cut.method == "packed, overlong: truncate"


def test_conversations_that_all_fit_are_packed_in_one_way(tmp_path):
    prefix = open_prefix(write_conversations(tmp_path / "data", answered([7, 7, 2])))
    _, packed = fill_rows(prefix.name, prefix, seq_length=10, seed=1)
    assert packed.method == "packed, all fit" and packed.samples == packed.measured == 2
    assert packed.padding == pytest.approx(4 / 20) and packed.segments == 1.5


def test_joined_documents_have_no_padding(tmp_path, monkeypatch):
    monkeypatch.setattr(statistics, "MEASURED_SAMPLES", 3)
    path = write_prefix(tmp_path / "data", numbered_documents([30, 31]))
    prefix = open_prefix(str(path))
    [row] = fill_rows(prefix.name, prefix, seq_length=10, seed=1)
    assert (row.samples, row.measured, row.padding, row.learned) == (6, 3, 0.0, 1.0)


def test_a_stock_file_has_samples_too(tmp_path):
    path = write_prefix(tmp_path / "data", numbered_documents([30, 31]))
    path.with_suffix(".meta.json").unlink()
    prefix = open_prefix(str(path))
    [row] = fill_rows(prefix.name, prefix, seq_length=10, seed=1)
    assert row.samples == 6


def test_groups_with_a_tie_are_counted(tmp_path):
    ranks = [[0, 1], [1, 0, 1], [0, 0, 1], [0, 1, 2]]
    groups = [([1], [([i], rank) for i, rank in enumerate(group)]) for group in ranks]
    assert count_ties(open_prefix(write_groups(tmp_path / "data", groups))) == 2


def picture_size(path):
    raw = path.read_bytes()
    assert raw[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", raw[16:24])


@pytest.mark.parametrize("sources", [0, 1, 3, 40])
def test_pictures_are_made_of_any_number_of_sources(tmp_path, sources):
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 50, 40).tolist()
    names = [f"文件{i}.txt" if i % 2 else f"$a_{i}$ {'long ' * 20}.txt" for i in range(sources)]
    step = 40 // max(sources, 1)
    listed = tuple(
        source(name, i * step, 40 if i == sources - 1 else (i + 1) * step)
        for i, name in enumerate(names)
    )
    prefix = write_prefix(tmp_path / "data", numbered_documents(lengths), np.int32, sources=listed)
    opened = open_prefix(str(prefix))
    plot_lengths(opened, tmp_path / "lengths.png", seq_length=32)
    plot_sources(opened, tmp_path / "sources.png")
    assert picture_size(tmp_path / "lengths.png") == (1200, 900)
    assert picture_size(tmp_path / "sources.png")[0] == 1200


@pytest.mark.parametrize("lengths", [[], [0], [1]])
@pytest.mark.filterwarnings("error")
def test_pictures_are_made_of_as_good_as_nothing(tmp_path, lengths):
    opened = open_prefix(str(write_prefix(tmp_path / "data", numbered_documents(lengths))))
    plot_lengths(opened, tmp_path / "lengths.png")
    plot_sources(opened, tmp_path / "sources.png")
    assert picture_size(tmp_path / "lengths.png") == (1200, 900)


def test_pictures_tell_supervised_tokens(tmp_path):
    sources = (source("a.json", 0, 3, supervised_tokens=9, tokens=19),)
    path = write_conversations(tmp_path / "data", answered([6, 6, 7]), sources=sources)
    plot_sources(open_prefix(path), tmp_path / "sources.png")
    assert picture_size(tmp_path / "sources.png")[0] == 1200
