"""The run's logger: the training loop reports to it, and it passes each event to all sinks."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_chimed.errors import ConfigError
from megatron_chimed.observe.calibration import write_calibration
from megatron_chimed.observe.flops import FLOPS_FORMULA
from megatron_chimed.observe.metrics import MetricsFile
from megatron_chimed.observe.plots import write_loss_curve
from megatron_chimed.observe.progress import (
    ProgressMode,
    describe_held_out,
    describe_samples,
    make_progress,
)
from megatron_chimed.observe.sinks import SAMPLES, SOURCES, Guarded, SamplesFile, Sink
from megatron_chimed.observe.source_plot import write_source_losses
from megatron_chimed.observe.sources import SourceSums, Sums, fields_of
from megatron_chimed.observe.tensorboard import TensorBoardWriter
from megatron_chimed.observe.timers import StepRate
from megatron_chimed.observe.trackers import SwanlabWriter, TrackerConfig, WandbWriter

METRICS_NAME = "metrics.jsonl"
TENSORBOARD_NAME = "tensorboard"
LOSS_CURVE_NAME = "loss_curve.png"
CALIBRATION_NAME = "calibration.png"
SOURCE_LOSSES_NAME = "source_losses.png"
SAMPLES_NAME = "samples.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogConfig:
    """How a run is logged."""

    log_interval: int = 10
    """Steps between records if stdout is not a terminal; `metrics.jsonl` has every step."""
    tensorboard: bool = True
    """Write TensorBoard event files to `tensorboard/` in the run's folder."""
    progress: ProgressMode = "auto"
    """`rich`: a live line; `plain`: records; `off`: messages only; `auto`: `rich` on a terminal."""
    source_interval: int = 0
    """Steps over which the losses of a blend's sources are averaged for one record; 0: one step for
    each 5 sources, so that hundreds of sources take no more space than a few."""
    sample_prompts: str | None = None
    """File of up to 32 prompts to answer at each validation: one per line in a `.txt`, rows with
    `prompt` or a conversation in a `.jsonl`; answers go to samples.jsonl and the trackers."""
    sample_tokens: int = 64
    """Longest sample answer, in tokens; decoding is greedy."""
    wandb: TrackerConfig = TrackerConfig()
    """Weights & Biases, disabled by default."""
    swanlab: TrackerConfig = TrackerConfig()
    """SwanLab, disabled by default."""

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ConfigError: A value is out of range.
        """
        if self.log_interval < 1:
            raise ConfigError(
                f"log_interval ({self.log_interval}) is less than 1: it is the number of steps "
                "between two records. Set it to 1 or more, or progress to off."
            )
        if self.source_interval < 0:
            raise ConfigError(
                f"source_interval ({self.source_interval}) is negative: it is a number of steps. "
                "Set it to 1 or more, or to 0 for one step for each 5 sources."
            )
        if self.sample_tokens < 1:
            raise ConfigError(
                f"sample_tokens ({self.sample_tokens}) is less than 1: an answer has at least one "
                "token. Set it to 1 or more, or leave sample_prompts out."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One optimizer step, already reduced over all ranks."""

    step: int
    """Steps done, this one included: the first is 1."""
    loss: float
    """Mean over the step's supervised tokens (or groups of answers)."""
    learning_rate: float
    """Learning rate of this step."""
    grad_norm: float
    """Global L2 norm before clipping."""
    tokens: int
    """Token positions in the step over all data-parallel ranks, including padding at the end of
    packs, which is computed as well."""
    counted: int
    """Number of supervised tokens (or groups of answers) that `loss` is the mean of."""
    seconds: float
    """Wall time of the step."""
    consumed_samples: int
    """Samples read since the run began, this step included."""
    skipped: bool = False
    """The update was skipped because gradients were not finite."""
    loss_scale: float | None = None
    """fp16 loss scale; None for other types."""
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Metrics of the objective, such as accuracy."""
    sources: Sums = dataclasses.field(default_factory=dict)
    """Losses by source of a blend."""


class RunLogger:
    """Writes `metrics.jsonl` and the plots, and passes events to all other sinks.

    Throughput and ETA are moving averages (`StepRate`); each event also has `tokens` and `seconds`
    of its step. Use it as a context manager: leaving it draws the plots, unless an exception is
    raised, which nothing here may hide. If `metrics.jsonl` cannot be written, the run ends; any
    other sink that fails is disabled after a warning.

    Args:
        config: How to report.
        output_dir: The run's folder.
        total_steps: Steps of the whole run.
        start_step: Steps done by the checkpoint this run starts from; 0 for a fresh run, which
            replaces an older `metrics.jsonl`.
        flops_per_token: Model FLOPs, from `model_flops_per_token`.
        num_devices: Number of devices; TFLOP/s are per device.
        is_writer: True on the one rank that reports; on others every method does nothing.

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
        self._config = config
        self._output_dir = Path(output_dir)
        self._total_steps, self._start_step = total_steps, start_step
        self._tflop_per_token = flops_per_token / num_devices / 1e12
        self._rate = StepRate()
        self._sources = SourceSums(config.source_interval)
        self._last_step: int | None = None
        self._closing = contextlib.ExitStack()
        self._sinks: list[Sink] = []
        self._progress = None
        self._metrics: MetricsFile | None = None
        if not is_writer:
            return
        self._metrics = MetricsFile(self._output_dir / METRICS_NAME, resume_step=start_step)
        self._closing.callback(self._metrics.close)
        self._progress = make_progress(
            config.progress,
            total_steps=total_steps,
            start_step=start_step,
            log_interval=config.log_interval,
        )
        self._add_sink(self._progress)
        self._open_files()
        self.event("start", start_step, total_steps=total_steps, num_devices=num_devices)
        self.message(
            f"TFLOP/s are per device ({num_devices}) and of the model: "
            f"{flops_per_token / 1e9:.3g} GFLOP/token = {FLOPS_FORMULA}"
        )

    def __enter__(self) -> "RunLogger":
        """Returns itself."""
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        """Closes; draws the plots unless an exception is raised."""
        if error_type is None:
            self.close()
        else:
            with self._closing, contextlib.suppress(OSError):  # the first exception matters more
                self._flush_sources()

    def track(self, settings: Mapping[str, Any]) -> None:
        """Opens the experiment trackers that are configured.

        Args:
            settings: The run's configuration, shown with its curves.
        """
        if self._metrics is None:
            return
        config, folder = self._config, self._output_dir
        makers: dict[str, tuple[TrackerConfig, Callable[[], Sink]]] = {
            "wandb": (
                config.wandb,
                lambda: WandbWriter(config.wandb, folder, settings, resume_step=self._start_step),
            ),
            "swanlab": (config.swanlab, lambda: SwanlabWriter(config.swanlab, folder, settings)),
        }
        for name, (tracker, make) in makers.items():
            if tracker.mode != "disabled":
                self._add_guarded(name, make)

    def step(self, record: StepRecord) -> None:
        """Reports one training step."""
        self._rate.update(seconds=record.seconds, tokens=record.tokens)
        fields = {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}
        step, metrics, sources = (fields.pop(name) for name in ("step", "metrics", "sources"))
        self._last_step = step
        if record.loss_scale is None:
            del fields["loss_scale"]
        tokens_per_second = self._rate.tokens_per_second
        fields["tokens_per_second"] = tokens_per_second
        fields["tflops_per_device"] = tokens_per_second * self._tflop_per_token
        fields["eta_seconds"] = self._rate.seconds_for(self._total_steps - step)
        assert not fields.keys() & metrics.keys(), (
            f"metrics overwrite fields of the step: {metrics.keys()}"
        )
        self.event("train", step, **fields, **metrics)
        self._sources.add(sources)
        if self._sources.is_due:
            self._flush_sources()

    def validation(
        self,
        step: int,
        loss: float,
        *,
        sources: Sums | None = None,
        details: Mapping[str, list] | None = None,
        **metrics: float,
    ) -> None:
        """Reports a validation after `step` steps; `details` are recorded but not printed."""
        self._held_out("valid", step, {"loss": loss, **metrics}, sources or {}, details or {})

    def test(
        self, step: int, loss: float, *, sources: Sums | None = None, **metrics: float
    ) -> None:
        """Reports the test at the end of a run."""
        self._held_out("test", step, {"loss": loss, **metrics}, sources or {}, {})

    def samples(self, step: int, samples: Sequence[Mapping[str, str]]) -> None:
        """Reports sample answers of the model after `step` steps.

        Args:
            step: Steps done.
            samples: Dicts with `prompt`, `answer` and `finish_reason`, always in the same order.
        """
        event = self._make_event(SAMPLES, step, samples=[dict(sample) for sample in samples])
        for sink in self._sinks:
            sink.write(event)
        for line in describe_samples(step, samples):
            self.message(line)

    def event(self, kind: str, step: int, **fields: Any) -> None:
        """Records any other event; fields are numbers, short strings and lists of numbers."""
        if self._metrics is None:
            return
        if kind == "checkpoint":
            self._flush_sources()  # so that a resumed run loses no sums
        event = self._make_event(kind, step, **fields)
        self._metrics.write(event)
        for sink in self._sinks:
            sink.write(event)

    def message(self, text: str) -> None:
        """Prints a line, above the live line if there is one."""
        if self._progress is not None:
            self._progress.message(text)

    def close(self) -> None:
        """Draws the plots if a step was reported, then closes everything; may be repeated."""
        with self._closing:
            self._flush_sources()
            if self._metrics is not None and self._last_step is not None:
                self._draw()
        self._sinks, self._metrics = [], None

    def _held_out(
        self,
        kind: str,
        step: int,
        metrics: Mapping[str, float],
        sources: Sums,
        details: Mapping[str, list],
    ) -> None:
        losses = fields_of(sources)
        self.event(kind, step, **metrics, **losses, **details)
        for line in describe_held_out(kind, step, metrics, losses):
            self.message(line)

    def _flush_sources(self) -> None:
        fields = self._sources.take()
        if fields and self._last_step is not None:
            self.event(SOURCES, self._last_step, **fields)

    def _make_event(self, kind: str, step: int, **fields: Any) -> dict[str, Any]:
        return {"kind": kind, "step": step, "time": round(time.time(), 3), **fields}

    def _open_files(self) -> None:
        folder, start_step = self._output_dir, self._start_step
        if self._config.tensorboard:
            self._add_guarded(
                "TensorBoard",
                lambda: TensorBoardWriter(folder / TENSORBOARD_NAME, resume_step=start_step),
            )
        samples = folder / SAMPLES_NAME
        if self._config.sample_prompts is not None or samples.exists():
            self._add_guarded(SAMPLES_NAME, lambda: SamplesFile(samples, resume_step=start_step))

    def _draw(self) -> None:
        """Draws the plots; a plot that fails does not fail the run."""
        plots = (
            ("loss curve", LOSS_CURVE_NAME, write_loss_curve),
            ("calibration on held-out pairs", CALIBRATION_NAME, write_calibration),
            ("losses of sources", SOURCE_LOSSES_NAME, write_source_losses),
        )
        for what, name, draw in plots:
            path = self._output_dir / name
            try:
                is_drawn = draw(self._output_dir / METRICS_NAME, path)
            except Exception as error:  # the disk, or a library
                self.message(f"warning: {path} was not drawn ({type(error).__name__}: {error})")
                continue
            if is_drawn:
                self.message(f"{what}: {path}")

    def _add_sink(self, sink: Sink) -> None:
        self._sinks.append(sink)
        self._closing.callback(sink.close)

    def _add_guarded(self, name: str, make: Callable[[], Sink]) -> None:
        self._add_sink(Guarded(name, make, self.message))
