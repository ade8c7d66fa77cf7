"""Sinks, which receive all events of a run, and how their failures are handled."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from megatron_chimed.observe.metrics import Event, MetricsFile
from megatron_chimed.observe.sources import PREFIX

SCALAR_KINDS = ("train", "valid", "test")
SOURCES, SAMPLES = "sources", "samples"  # kinds of events
NO_SCALARS = ("step", "time")


class Sink(Protocol):
    """Receives every event of a run and handles the kinds that it knows."""

    def write(self, event: Event) -> None:
        """Handles one event."""

    def close(self) -> None:
        """Flushes and closes; the last call."""


class Guarded:
    """A sink whose failure does not end a training run: it is reported once and then disabled.

    Args:
        name: Its name in the message.
        make: Opens the sink.
        say: Called with the message about a failure.
    """

    def __init__(self, name: str, make: Callable[[], Sink], say: Callable[[str], None]) -> None:
        self._name, self._say = name, say
        self._sink: Sink | None = None
        self._sink = self._try(make)

    def write(self, event: Event) -> None:
        """Passes the event to the sink unless it has failed."""
        if (sink := self._sink) is not None:
            self._try(lambda: sink.write(event))

    def close(self) -> None:
        """Closes the sink unless it has failed."""
        if self._sink is not None:
            self._try(self._sink.close)
            self._sink = None

    def _try(self, action: Callable[[], Sink | None]) -> Sink | None:
        try:
            return action()
        except Exception as error:  # a service's client can raise anything
            self._sink = None
            self._say(
                f"warning: {self._name} failed and is disabled until the run is started again "
                f"({type(error).__name__}: {error}). Training continues; metrics.jsonl is complete."
            )
            return None


class SamplesFile:
    """`samples.jsonl`: a line for each answer, {kind, step, time, number, prompt, answer, ...}.

    Args:
        path: The file.
        resume_step: See `MetricsFile`.
    """

    def __init__(self, path: Path, *, resume_step: int) -> None:
        self._file = MetricsFile(path, resume_step=resume_step)

    def write(self, event: Event) -> None:
        """Appends the answers of a `samples` event."""
        if event["kind"] != SAMPLES:
            return
        for number, sample in enumerate(event["samples"], start=1):
            place = {"step": event["step"], "time": event["time"], "number": number}
            self._file.write({"kind": "sample", **place, **sample})

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def scalars_of(event: Event) -> dict[str, float]:
    """Scalars of an event for dashboards, as `<kind>/<name>`; empty for kinds without curves.

    Losses of sources are in a group of their own, `train_sources/<name>`, so that hundreds of them
    do not hide the rest.
    """
    kind = "train" if event["kind"] == SOURCES else event["kind"]
    if kind not in SCALAR_KINDS:
        return {}
    numbers: dict[str, float] = {
        name: value
        for name, value in event.items()
        if isinstance(value, int | float) and name not in NO_SCALARS
    }
    losses = {name: value for name, value in numbers.items() if name.startswith(PREFIX)}
    found = {f"{kind}_sources/{n.removeprefix(PREFIX)}": value for n, value in losses.items()}
    if event["kind"] == SOURCES:
        return found
    own = {name: value for name, value in numbers.items() if "/" not in name}
    return {f"{kind}/{name}": value for name, value in own.items()} | found
