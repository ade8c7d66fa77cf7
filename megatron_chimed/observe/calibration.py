"""Calibration plot of a reward model, drawn from `metrics.jsonl` alone."""

import os
from typing import Any

from megatron_chimed.observe.figures import make_figure, save_figure
from megatron_chimed.observe.intervals import wilson_interval
from megatron_chimed.observe.metrics import read_metrics


def write_calibration(metrics: str | os.PathLike, png: str | os.PathLike) -> bool:
    """Plots the accuracy on held-out pairs over the model's confidence.

    Each share has its 95 % Wilson interval, which assumes independent pairs: pairs of one group are
    not, so it is somewhat too narrow. The lower axes show the number of pairs per confidence bin.
    The expected calibration error in the title is the mean over pairs of |accuracy - confidence| of
    their bins.

    Args:
        metrics: A `metrics.jsonl`; its last validation with a `calibration` is drawn: for each bin
            the number of pairs, the sum of confidences and the number ranked correctly.
        png: The picture (900 x 900 pixels), replaced atomically.

    Returns:
        Whether there was a validation with pairs to draw.

    Source: Guo et al., On Calibration of Modern Neural Networks (arXiv 1706.04599), section 2.
    """
    events = [event for event in read_metrics(metrics) if event["kind"] == "valid"]
    found = [event for event in events if any(count for count, *_ in event.get("calibration", ()))]
    if not found:
        return False
    figure = make_figure(6, 6)
    upper, lower = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [4, 1]})
    _draw(upper, lower, found[-1])
    save_figure(figure, png)
    return True


def calibration_error(bins: list[list[float]]) -> float:
    """Expected calibration error of bins of (pairs, sum of confidences, ranked correctly)."""
    return sum(abs(right - confidence) for _, confidence, right in bins) / sum(
        count for count, *_ in bins
    )


def _draw(upper: Any, lower: Any, event: dict[str, Any]) -> None:
    bins = event["calibration"]
    full = [entry for entry in bins if entry[0]]
    width = 0.5 / len(bins)
    upper.plot([0.5, 1], [0.5, 1], color="gray", linestyle=":", label="perfectly calibrated")
    shares = [right / count for count, _, right in full]
    ends = [wilson_interval(right, count) for count, _, right in full]
    # Rounding may put an end on the wrong side by 1e-17, and error bars must not be negative.
    errors = [
        [max(0.0, share - low) for share, (low, _) in zip(shares, ends, strict=True)],
        [max(0.0, high - share) for share, (_, high) in zip(shares, ends, strict=True)],
    ]
    upper.errorbar(
        [confidence / count for count, confidence, _ in full],
        shares,
        errors,
        color="tab:blue",
        marker="o",
        capsize=3,
        label="held-out pairs, 95% Wilson intervals",
    )
    pairs = int(sum(count for count, *_ in bins))
    low, high = wilson_interval(sum(right for *_, right in bins), pairs)
    upper.set_title(
        f"step {event['step']}: {pairs:,} pairs, {event['accuracy']:.3f} ranked correctly (95%: "
        f"{low:.2f} to {high:.2f}),\ncalibration error {calibration_error(bins):.3f}",
        fontsize="medium",
    )
    upper.set(ylabel="share ranked correctly", ylim=(-0.02, 1.02))
    upper.legend(framealpha=0.8, edgecolor="none")
    centres = [0.5 + (number + 0.5) * width for number in range(len(bins))]
    lower.bar(centres, [count for count, *_ in bins], width=0.9 * width, color="tab:green")
    lower.yaxis.get_major_locator().set_params(integer=True)
    lower.set(xlabel="confidence in the preferred answer", ylabel="pairs")
