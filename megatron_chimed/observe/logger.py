"""What the training loop reports to; it hands each event to every place that shows it."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_chimed.errors import ConfigError
from megatron_chimed.observe.calibration import write_calibration
from megatron_chimed.observe.flops import FLOPS_FORMULA
from megatron_chimed.observe.metrics import MetricsFile
from megatron_chimed.observe.plots import write_loss_curve
from megatron_chimed.observe.progress import ProgressMode, make_progress
from megatron_chimed.observe.tensorboard import TensorBoardWriter
from megatron_chimed.observe.timers import StepRate

METRICS_NAME = "metrics.jsonl"
TENSORBOARD_NAME = "tensorboard"
LOSS_CURVE_NAME = "loss_curve.png"
CALIBRATION_NAME = "calibration.png"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogConfig:
    """How a run reports."""

    log_interval: int = 10
    """Steps between records where stdout is not a terminal; `metrics.jsonl` has every step."""
    tensorboard: bool = True
    """Write TensorBoard event files to `tensorboard/` in the run's folder."""
    progress: ProgressMode = "auto"
    """`rich`: a live line; `plain`: records; `off`: messages only; `auto`: `rich` on a terminal."""

    def __post_init__(self) -> None:
        """Checks the interval."""
        if self.log_interval < 1:
            raise ConfigError(
                f"log_interval ({self.log_interval}) is less than 1: it counts steps between two "
                "records. Set it to 1 or more, or progress to off."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One optimizer step, already reduced over all ranks."""

    step: int
    """Steps done, this one included: the first is 1."""
    loss: float
    """Mean over the step's supervised tokens (or groups of answers)."""
    learning_rate: float
    """The rate this step used."""
    grad_norm: float
    """Global L2 norm before clipping."""
    tokens: int
    """Places for tokens in the step over all data-parallel ranks. Padding at the end of packs is
    among them: it is computed as tokens are."""
    counted: int
    """What `loss` is the mean over: supervised tokens, or groups of answers."""
    seconds: float
    """Wall time of the step."""
    consumed_samples: int
    """Samples read since the run began, this step included."""
    skipped: bool = False
    """The update was left out because gradients were not finite."""
    loss_scale: float | None = None
    """fp16 loss scale; None for other types."""
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """What a stage adds, such as accuracy; goes to the file and to TensorBoard."""


class RunLogger:
    """Writes `metrics.jsonl`, TensorBoard scalars, the progress display and the loss curve.

    Throughput and ETA are moving averages (`StepRate`); `tokens` and `seconds` of each step stand
    beside them. Use as a context manager: leaving it draws `loss_curve.png`, unless an error is on
    its way out, which nothing here may hide.

    Args:
        config: How to report.
        output_dir: The run's folder.
        total_steps: Steps of the whole run.
        start_step: Steps done by the checkpoint this run starts from; 0 for a fresh run, which
            replaces an older `metrics.jsonl`.
        flops_per_token: Model FLOPs, from `model_flops_per_token`.
        num_devices: Devices over which the work is spread; TFLOP/s are per device.
        is_writer: True on the one rank that reports; elsewhere every method does nothing.

    Raises:
        DataError: `metrics.jsonl` of the run to be resumed is damaged.
    """

    def __init__(
        self,
        config: LogConfig,
        output_dir: str | os.PathLike,
        *,
        total_steps: int,
        start_step: int,
        flops_per_token: float,
        num_devices: int,
        is_writer: bool,
    ) -> None:
        self._output_dir = Path(output_dir)
        self._total_steps = total_steps
        self._tflop_per_token = flops_per_token / num_devices / 1e12
        self._rate = StepRate()
        self._has_steps = False
        self._closing = contextlib.ExitStack()
        self._sinks = []
        self._progress = None
        if not is_writer:
            return
        self._add_sink(MetricsFile(self._output_dir / METRICS_NAME, resume_step=start_step))
        if config.tensorboard:
            folder = self._output_dir / TENSORBOARD_NAME
            self._add_sink(TensorBoardWriter(folder, resume_step=start_step))
        self._progress = make_progress(
            config.progress,
            total_steps=total_steps,
            start_step=start_step,
            log_interval=config.log_interval,
        )
        self._add_sink(self._progress)
        self.event("start", start_step, total_steps=total_steps, num_devices=num_devices)
        self.message(
            f"TFLOP/s are per device ({num_devices}) and of the model: "
            f"{flops_per_token / 1e9:.3g} GFLOP/token = {FLOPS_FORMULA}"
        )

    def __enter__(self) -> "RunLogger":
        """Returns itself."""
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        """Closes; draws the loss curve if no error is passing through."""
        if error_type is None:
            self.close()
        else:
            self._closing.close()

    def step(self, record: StepRecord) -> None:
        """Reports one training step."""
        self._rate.update(seconds=record.seconds, tokens=record.tokens)
        self._has_steps = True
        fields = dataclasses.asdict(record)
        step, metrics = fields.pop("step"), fields.pop("metrics")
        if record.loss_scale is None:
            del fields["loss_scale"]
        tokens_per_second = self._rate.tokens_per_second
        fields["tokens_per_second"] = tokens_per_second
        fields["tflops_per_device"] = tokens_per_second * self._tflop_per_token
        fields["eta_seconds"] = self._rate.seconds_for(self._total_steps - step)
        assert not fields.keys() & metrics.keys(), f"metrics hide a step's own: {metrics.keys()}"
        self.event("train", step, **fields, **metrics)

    def validation(
        self, step: int, loss: float, *, details: Mapping[str, list] | None = None, **metrics: float
    ) -> None:
        """Reports a validation after `step` steps; `details` are recorded, but not printed."""
        self._held_out("valid", "validation", step, {"loss": loss, **metrics}, details or {})

    def test(self, step: int, loss: float, **metrics: float) -> None:
        """Reports the test at the end of a run."""
        self._held_out("test", "test", step, {"loss": loss, **metrics}, {})

    def _held_out(
        self, kind: str, name: str, step: int, metrics: Mapping[str, float], details: Mapping
    ) -> None:
        self.event(kind, step, **metrics, **details)
        values = "".join(f"  {metric} {value:.4f}" for metric, value in metrics.items())
        self.message(f"{name} at step {step}{values}")

    def event(self, kind: str, step: int, **fields: Any) -> None:
        """Records any other event; fields are numbers, short strings and lists of numbers."""
        event = {"kind": kind, "step": step, "time": round(time.time(), 3), **fields}
        for sink in self._sinks:
            sink.write(event)

    def message(self, text: str) -> None:
        """Prints a line, above the live line if there is one."""
        if self._progress is not None:
            self._progress.message(text)

    def close(self) -> None:
        """Draws the loss curve if a step was reported, then closes everything; may be repeated."""
        with self._closing:
            if self._sinks and self._has_steps:
                curve = self._output_dir / LOSS_CURVE_NAME
                write_loss_curve(self._output_dir / METRICS_NAME, curve)
                self.message(f"loss curve: {curve}")
                calibration = self._output_dir / CALIBRATION_NAME
                if write_calibration(self._output_dir / METRICS_NAME, calibration):
                    self.message(f"calibration on held-out pairs: {calibration}")
        self._sinks = []

    def _add_sink(self, sink: Any) -> None:
        self._sinks.append(sink)
        self._closing.callback(sink.close)
