"""The calibration plot and its error, from a metrics file alone."""

import pytest

from megatron_chimed.observe import calibration
from megatron_chimed.observe.calibration import calibration_error, write_calibration
from megatron_chimed.observe.intervals import wilson_interval
from megatron_chimed.observe.metrics import MetricsFile

BINS = [[0, 0.0, 0], [4, 2.4, 3], [0, 0.0, 0], [6, 5.4, 5]]


def write(path, *events):
    metrics = MetricsFile(path)
    for event in events:
        metrics.write({"kind": "valid", "step": 1, "accuracy": 0.8, **event})
    metrics.close()
    return path


def test_the_error_is_the_mean_gap_over_pairs():
    """Guo et al., eq. 3, by hand: 4/10 |3/4 - 0.6| + 6/10 |5/6 - 0.9|."""
    assert calibration_error(BINS) == pytest.approx(0.4 * 0.15 + 0.6 * (0.9 - 5 / 6))


def test_the_last_validation_is_drawn(tmp_path):
    path = write(tmp_path / "metrics.jsonl", {"calibration": BINS}, {"calibration": BINS})
    assert write_calibration(path, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_each_share_has_its_wilson_interval(tmp_path, monkeypatch):
    drawn = {}

    def save(figure, png):
        (bars,) = figure.axes[0].containers
        drawn["ends"] = [segment[:, 1].tolist() for segment in bars.lines[2][0].get_segments()]
        drawn["texts"] = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        drawn["title"] = figure.axes[0].get_title()

    monkeypatch.setattr(calibration, "save_figure", save)
    assert write_calibration(write(tmp_path / "m", {"calibration": BINS}), tmp_path / "plot.png")
    for (low, high), (count, _, right) in zip(drawn["ends"], (BINS[1], BINS[3]), strict=True):
        assert (low, high) == pytest.approx(wilson_interval(right, count))
    assert "held-out pairs, 95% Wilson intervals" in drawn["texts"]
    assert "10 pairs, 0.800 ranked correctly (95%: 0.49 to 0.94)" in drawn["title"]


@pytest.mark.parametrize("events", [[], [{}], [{"calibration": [[0, 0.0, 0]]}]])
def test_without_pairs_nothing_is_drawn(tmp_path, events):
    assert not write_calibration(write(tmp_path / "metrics.jsonl", *events), tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()
