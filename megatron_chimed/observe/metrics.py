"""`metrics.jsonl`: one JSON object per event, the record from which every curve is drawn.

An event is flat: `kind` (train, valid, checkpoint, start, ...), `step`, then numbers, short strings
and lists of finite numbers. JSON has no NaN or infinity, but which of them it was is the first
question after a divergence, so they are written as the strings "NaN", "Infinity" and "-Infinity",
which `float` and JavaScript's `Number` can parse.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron_chimed.errors import DataError
from megatron_chimed.files import atomic_file

Event = Mapping[str, Any]

NON_FINITE = {text: float(text) for text in ("NaN", "Infinity", "-Infinity")}


class MetricsFile:
    """Appends events to a file and flushes each line.

    Opening it atomically drops older events after `resume_step`, so that each step is in the file
    once, however often the run restarts. `resume_step` 0 starts afresh.

    Args:
        path: The file; its folder is created.
        resume_step: Steps done by the restored checkpoint; later events are dropped.

    Raises:
        DataError: The older file is not a metrics file; it is left unchanged.
    """

    def __init__(self, path: str | os.PathLike, *, resume_step: int = 0) -> None:
        path = Path(path)
        with atomic_file(path) as temporary, open(temporary, "w", encoding="utf-8") as stream:
            if resume_step > 0 and path.exists():
                kept = (event for event in _raw_events(path) if event["step"] <= resume_step)
                stream.writelines(map(_encode, kept))
        self._stream = open(path, "a", buffering=1, encoding="utf-8")

    def write(self, event: Event) -> None:
        """Appends one event; it must hold `kind` and `step`."""
        assert "kind" in event and "step" in event, f"event without kind or step: {event}"
        self._stream.write(_encode({key: _to_json(value) for key, value in event.items()}))

    def close(self) -> None:
        """Closes the file."""
        self._stream.close()


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """All events in file order, with NaN and infinities as floats again.

    An incomplete last line, left by a killed writer, is ignored.

    Raises:
        DataError: Another line is not an event.
    """
    return [{key: _from_json(value) for key, value in event.items()} for event in _raw_events(path)]


def _raw_events(path: str | os.PathLike) -> Iterator[dict[str, Any]]:
    """Events as stored, with non-finite numbers still strings."""
    with open(path, encoding="utf-8", errors="replace") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                event = json.loads(line)
                if not isinstance(event["step"], int) or not isinstance(event["kind"], str):
                    raise TypeError("kind is not a string or step not an integer")
            except (ValueError, TypeError, KeyError) as error:
                if not line.endswith("\n"):
                    return
                raise DataError(
                    f"{path} line {number} is not a metrics event ({error!r}): each line is a JSON "
                    "object with kind and step. Fix the line or move the file away."
                ) from error
            yield event


def _encode(event: Event) -> str:
    return json.dumps(event, ensure_ascii=False, allow_nan=False) + "\n"


def _to_json(value: Any) -> Any:
    if not isinstance(value, float) or math.isfinite(value):
        return value
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _from_json(value: Any) -> Any:
    return NON_FINITE.get(value, value) if isinstance(value, str) else value
