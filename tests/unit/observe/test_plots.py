"""The loss curve is a picture with its curves in it."""

import json
import math

import matplotlib.image
import numpy as np
import pytest

from megatron_chimed.errors import DataError
from megatron_chimed.observe import plots, source_plot
from megatron_chimed.observe.intervals import wilson_interval
from megatron_chimed.observe.metrics import MetricsFile
from megatron_chimed.observe.plots import smooth, write_loss_curve

TAB_BLUE, TAB_ORANGE, TAB_GREEN = (31, 119, 180), (255, 127, 14), (44, 160, 44)


def write_run(path, *, losses, validations):
    metrics = MetricsFile(path)
    for step, loss in enumerate(losses, start=1):
        event = {"kind": "train", "step": step, "loss": loss, "skipped": not math.isfinite(loss)}
        metrics.write(event | {"learning_rate": 1e-4})
    for step, loss in validations:
        metrics.write({"kind": "valid", "step": step, "loss": loss})
    metrics.close()


def count_pixels(png, color):
    image = matplotlib.image.imread(png)
    assert image.shape == (900, 1500, 4)
    near = np.abs(image[..., :3] - np.array(color) / 255).max(axis=-1) < 0.02
    return int(near.sum())


@pytest.mark.parametrize("num_steps", [1, 20, 400])
def test_curve_has_training_validation_and_learning_rate(tmp_path, num_steps):
    losses = [5 / step + 1 for step in range(1, num_steps + 1)]
    losses[num_steps // 2 :: 50] = [math.nan] * len(losses[num_steps // 2 :: 50])
    losses[0] = 6.0
    metrics, png = tmp_path / "metrics.jsonl", tmp_path / "loss_curve.png"
    write_run(
        metrics, losses=losses, validations=[(0, 3.0), (num_steps, 2.5), (num_steps, math.inf)]
    )
    write_loss_curve(metrics, png)
    for color in (TAB_BLUE, TAB_ORANGE, TAB_GREEN):
        assert count_pixels(png, color) > 20
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["loss_curve.png", "metrics.jsonl"]


def test_without_validation_nothing_is_drawn_for_it(tmp_path):
    metrics, png = tmp_path / "metrics.jsonl", tmp_path / "loss_curve.png"
    write_run(metrics, losses=[3.0, 2.0], validations=[])
    write_loss_curve(metrics, png)
    assert count_pixels(png, TAB_ORANGE) == 0


def figure_of(monkeypatch, tmp_path, *, pairs=(), **run):
    """The figure of a run; `pairs` are fields of train and valid events by step."""
    metrics, kept = tmp_path / "metrics.jsonl", []
    write_run(metrics, **run)
    events = [json.loads(line) for line in metrics.read_text().splitlines()]
    with_pairs = [{**event, **dict(pairs).get(event["step"], {})} for event in events]
    metrics.write_text("".join(json.dumps(event) + "\n" for event in with_pairs))
    monkeypatch.setattr(plots, "save_figure", lambda figure, png: kept.append(figure))
    assert write_loss_curve(metrics, tmp_path / "loss_curve.png")
    kept[0].draw_without_rendering()
    return kept[0]


@pytest.mark.parametrize("num_steps", [1, 2, 3, 5, 11, 40, 3000])
def test_step_axes_have_whole_steps(monkeypatch, tmp_path, num_steps):
    figure = figure_of(
        monkeypatch, tmp_path, losses=[1.0] * num_steps, validations=[(num_steps, 1.0)]
    )
    axes = figure.axes[-1]
    low, high = axes.get_xlim()
    assert low < 1 and high > num_steps, "the first and the last step are not on the edge"
    labels = [t.get_text() for t in axes.get_xticklabels() if low <= t.get_position()[0] <= high]
    assert labels and len(set(labels)) == len(labels)
    assert all(label.isdecimal() for label in labels), labels
    if num_steps <= 10:
        assert labels == [str(step) for step in range(1, num_steps + 1)]


def test_accuracy_and_margin_are_drawn_for_training_and_validation(monkeypatch, tmp_path):
    pairs = {
        step: {"pairs": 8, "accuracy": step / 4, "margin": step - 2.0} for step in (1, 2, 4)
    }  # step 3 has no pair
    figure = figure_of(
        monkeypatch,
        tmp_path,
        losses=[1.0] * 4,
        validations=[(2, 0.9), (4, 0.8)],
        pairs=pairs,
    )
    named = {axes.get_ylabel(): axes for axes in figure.axes}
    assert [*named] == ["loss", "pairs ranked correctly", "margin", "learning rate"]
    for label, name in (("pairs ranked correctly", "accuracy"), ("margin", "margin")):
        axes = named[label]
        assert axes.lines[0].get_xydata().tolist() == [[s, pairs[s][name]] for s in (1, 2, 4)]
        assert axes.containers[0].lines[0].get_xydata().tolist() == [
            [step, pairs[step][name]] for step in (2, 4)
        ]
        legend = [text.get_text() for text in axes.get_legend().get_texts()]
        assert legend[0] == "training" and legend[1].startswith("validation, last")
    bars = named["pairs ranked correctly"].containers[0].lines[2][0].get_segments()
    assert bars[0][:, 1].tolist() == pytest.approx(wilson_interval(4, 8))


@pytest.mark.parametrize("num_sources", [2, 10, 11, 500])
def test_losses_of_sources_are_drawn_with_names_that_fit(monkeypatch, tmp_path, num_sources):
    metrics, kept = MetricsFile(tmp_path / "m"), []
    losses = {f"loss/s{k}": 1.0 + k for k in range(num_sources)}
    metrics.write({"kind": "sources", "step": 5, "steps": 5, **losses})
    metrics.write({"kind": "valid", "step": 5, "loss": 1.0, **losses})
    metrics.close()
    monkeypatch.setattr(source_plot, "save_figure", lambda figure, png: kept.append(figure))
    assert source_plot.write_source_losses(tmp_path / "m", tmp_path / "png")
    curves, ends = kept[0].axes
    legend = [text.get_text() for text in curves.get_legend().get_texts()]
    if num_sources <= 10:
        assert legend == [f"s{k}" for k in reversed(range(num_sources))]
    else:
        worst = [f"s{num_sources - 1 - k}" for k in range(5)]
        best = [f"s{k}" for k in reversed(range(5))]
        assert legend == [f"median of {num_sources} sources", *worst, *best]
    assert ends.get_xlabel() == "last validation loss"


def test_metrics_without_steps_are_an_error(tmp_path):
    metrics, png = tmp_path / "metrics.jsonl", tmp_path / "loss_curve.png"
    write_run(metrics, losses=[], validations=[(0, 1.0)])
    with pytest.raises(DataError, match="has no train event"):
        write_loss_curve(metrics, png)
    assert not png.exists()


def test_smoothing_is_a_centred_mean_of_finite_values():
    values = [1.0, math.nan, 3.0, 8.0, math.inf, 2.0]
    assert smooth(values, 3) == [1.0, 2.0, 5.5, 5.5, 5.0, 2.0]
    assert math.isnan(smooth([math.nan], 3)[0])
