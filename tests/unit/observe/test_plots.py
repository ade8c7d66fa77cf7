"""The loss curve is a picture with its curves in it."""

import math

import matplotlib.image
import numpy as np
import pytest

from megatron_chimed.errors import DataError
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


def test_metrics_without_steps_are_an_error(tmp_path):
    metrics, png = tmp_path / "metrics.jsonl", tmp_path / "loss_curve.png"
    write_run(metrics, losses=[], validations=[(0, 1.0)])
    with pytest.raises(DataError, match="holds no train event"):
        write_loss_curve(metrics, png)
    assert not png.exists()


def test_smoothing_is_a_centred_mean_of_finite_values():
    values = [1.0, math.nan, 3.0, 8.0, math.inf, 2.0]
    assert smooth(values, 3) == [1.0, 2.0, 5.5, 5.5, 5.0, 2.0]
    assert math.isnan(smooth([math.nan], 3)[0])
