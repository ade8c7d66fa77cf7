"""Progress display: live lines on a terminal, plain records elsewhere."""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

from megatron_chimed.observe.intervals import wilson_interval
from megatron_chimed.observe.metrics import Event
from megatron_chimed.observe.sources import describe_sources, losses_of

ProgressMode = Literal["auto", "rich", "plain", "off"]

REDRAW_SECONDS = 0.1
PROMPT_WIDTH, ANSWER_WIDTH = 80, 400  # characters of a sample shown in the log


class ProgressDisplay(Protocol):
    """Shows events and messages on stdout."""

    def write(self, event: Event) -> None:
        """Shows a train event; other kinds are shown as messages."""

    def message(self, text: str) -> None:
        """Prints a line that stays."""

    def close(self) -> None:
        """Shows the last values and leaves the cursor on a new line."""


def make_progress(
    mode: ProgressMode, *, total_steps: int, start_step: int, log_interval: int
) -> ProgressDisplay:
    """Builds the display: `auto` is `rich` on a capable terminal and `plain` otherwise."""
    if mode == "auto":
        mode = "rich" if sys.stdout.isatty() and not _is_dumb_terminal() else "plain"
    if mode == "rich":
        return RichProgress(total_steps=total_steps, start_step=start_step)
    interval = log_interval if mode == "plain" else 0
    return PlainProgress(total_steps=total_steps, start_step=start_step, log_interval=interval)


class PlainProgress:
    """One line per `log_interval` steps, and for the first, the last and each skipped step.

    For files and job logs: no control codes, and each line is flushed. `log_interval` 0 prints only
    messages.
    """

    def __init__(self, *, total_steps: int, start_step: int, log_interval: int) -> None:
        self._total_steps = total_steps
        self._first_step = start_step + 1
        self._log_interval = log_interval
        self._unprinted: Event | None = None

    def write(self, event: Event) -> None:
        """Prints a train event if it is due."""
        if event["kind"] != "train" or self._log_interval == 0:
            return
        step = event["step"]
        is_due = step % self._log_interval == 0 or step in (self._first_step, self._total_steps)
        if is_due or event["skipped"]:
            self._print(event)
        else:
            self._unprinted = event

    def message(self, text: str) -> None:
        """Prints a line."""
        print(text, flush=True)

    def close(self) -> None:
        """Prints the last step of a run that ended before `total_steps`."""
        if self._unprinted is not None:
            self._print(self._unprinted)

    def _print(self, event: Event) -> None:
        width = len(str(self._total_steps))
        self.message(
            f"step {event['step']:>{width}}/{self._total_steps}  {describe_step(event)}  "
            f"ETA {format_duration(event['eta_seconds'])}"
        )
        self._unprinted = None


class RichProgress:
    """Two live lines, a bar with ETA and the step's values, redrawn in place.

    The caller's thread draws them, at most every `REDRAW_SECONDS`: a refresh thread would be alive
    when data workers fork. Two lines, because one does not fit into 80 columns.
    """

    def __init__(self, *, total_steps: int, start_step: int) -> None:
        from rich import live, progress
        from rich.console import Console

        self._console = Console(force_terminal=True, highlight=False)
        self._bar = progress.Progress(
            progress.TextColumn("step"),
            progress.MofNCompleteColumn(),
            progress.BarColumn(),
            progress.TextColumn("{task.fields[eta]}"),
        )
        self._task = self._bar.add_task("", total=total_steps, completed=start_step, eta="")
        self._live = live.Live(self._bar, console=self._console, auto_refresh=False)
        self._drawn_at = float("-inf")
        self._live.start()

    def write(self, event: Event) -> None:
        """Redraws both lines with a train event."""
        from rich.console import Group
        from rich.text import Text

        if event["kind"] != "train":
            return
        eta = f"ETA {format_duration(event['eta_seconds'])}"
        self._bar.update(self._task, completed=event["step"], eta=eta)
        values = Text(describe_step(event), no_wrap=True, overflow="ellipsis")
        now = time.monotonic()
        is_due = now - self._drawn_at >= REDRAW_SECONDS
        self._live.update(Group(self._bar, values), refresh=is_due)
        if is_due:
            self._drawn_at = now

    def message(self, text: str) -> None:
        """Prints a line above the live ones."""
        self._console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Draws the last values and ends the live display."""
        self._live.stop()


def describe_step(event: Event) -> str:
    """A train event in one line, most important first, since narrow terminals cut the end."""
    parts = [
        f"loss {event['loss']:.4f}",
        f"lr {event['learning_rate']:.2e}",
        f"grad norm {event['grad_norm']:.3g}",
        f"{format_count(event['tokens_per_second'])} tokens/s",
        f"{event['tflops_per_device']:.3g} TFLOP/s",
    ]
    if "loss_scale" in event:
        parts.append(f"loss scale {event['loss_scale']:g}")
    if event["skipped"]:
        parts.insert(0, "SKIPPED (gradients not finite)")
    return "  ".join(parts)


def describe_held_out(
    kind: str, step: int, metrics: Mapping[str, float], sources: Mapping[str, float]
) -> list[str]:
    """A validation (`valid`) or test in one line, and a second line for its sources, if any.

    Args:
        kind: Kind of the event.
        step: Steps done.
        metrics: Means by name, and `pairs`, the number of pairs behind `accuracy`.
        sources: Fields of an event, including `loss/<name>`.
    """
    name = f"{'validation' if kind == 'valid' else kind} at step {step}"
    values = {metric: f"{metric} {value:.4f}" for metric, value in metrics.items()}
    if pairs := metrics.get("pairs"):
        low, high = wilson_interval(round(metrics["accuracy"] * pairs), pairs)
        del values["pairs"]
        values["accuracy"] += f" ({pairs:,} pairs, 95% interval {low:.2f} to {high:.2f})"
    by_source = describe_sources(losses_of(sources))
    lines = [f"{name}  {'  '.join(values.values())}"]
    return [*lines, f"{name}  {by_source}"] if by_source else lines


def describe_samples(step: int, samples: Sequence[Mapping[str, str]]) -> list[str]:
    """Two lines for each sample: prompt and answer."""
    lines = []
    for number, sample in enumerate(samples, start=1):
        end = "" if sample["finish_reason"] == "stop" else " [cut]"
        lines += [
            f"sample {number} at step {step}: {_one_line(sample['prompt'], PROMPT_WIDTH)}",
            f"    -> {_one_line(sample['answer'], ANSWER_WIDTH)}{end}",
        ]
    return lines


def _one_line(text: str, width: int) -> str:
    """Model output made safe for a terminal: no line breaks, no control characters."""
    shown = " ".join(text.split())
    shown = "".join(c if c.isprintable() else "\ufffd" for c in shown)
    return shown if len(shown) <= width else f"{shown[:width]} [...]"


def format_duration(seconds: float) -> str:
    """`h:mm:ss`, preceded by days if any."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    clock = f"{hour}:{minute:02d}:{second:02d}"
    return f"{days}d {clock}" if days else clock


def format_count(value: float) -> str:
    """Three digits and a unit: 950, 12.3k, 4.56M."""
    for scale, unit in ((1e6, "M"), (1e3, "k")):
        if value >= scale:
            return f"{value / scale:.3g}{unit}"
    return f"{value:.3g}"


def _is_dumb_terminal() -> bool:
    from rich.console import Console

    return Console().is_dumb_terminal
