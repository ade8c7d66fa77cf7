"""What an item finds out: rows, each of them on disk as soon as it is known."""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_chimed.files import write_json

Value = float | int | str | bool | None


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What a figure has to reach; the reason for the number is in the item."""

    at_least: float | None = None
    at_most: float | None = None
    equals: Value = None
    needs_gpu: bool = False
    """Whether a rehearsal cannot judge it: speed, and errors of the device."""

    def is_met(self, value: Value) -> bool:
        """Whether a value reaches it; NaN and texts reach no bound."""
        if self.equals is not None:
            return value == self.equals
        if not isinstance(value, int | float):
            return False
        low = self.at_least is None or value >= self.at_least
        return low and (self.at_most is None or value <= self.at_most)

    def __str__(self) -> str:
        if self.equals is not None:
            return str(self.equals)
        bounds = ((">=", self.at_least), ("<=", self.at_most))
        return " and ".join(f"{sign} {bound:g}" for sign, bound in bounds if bound is not None)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure."""

    what: str
    value: Value
    """None: not available, and `details["why"]` says why."""
    unit: str = ""
    goal: str = ""
    met: bool | None = None
    """None where there is no goal."""
    details: dict[str, Any] = field(default_factory=dict)


class Record:
    """The rows of one item; a killed item leaves those that it had.

    Args:
        path: JSON file that is replaced after each row.
        on_gpu: Off in a rehearsal: goals that need a GPU are stated and not judged.
    """

    def __init__(self, path: Path, *, on_gpu: bool = True) -> None:
        self._path, self._on_gpu = path, on_gpu
        self.rows: list[dict[str, Any]] = []

    def add(
        self, what: str, value: Value, unit: str = "", *, goal: Goal | None = None, **details: Any
    ) -> None:
        """Adds a figure; with a goal, whether it was met."""
        is_judged = goal is not None and (self._on_gpu or not goal.needs_gpu)
        row = Row(
            what=what,
            value=_plain(value),
            unit=unit,
            goal=str(goal) if goal else "",
            met=goal.is_met(value) if goal and is_judged else None,
            details={name: _plain(detail) for name, detail in details.items()},
        )
        self.rows.append(dataclasses.asdict(row))
        write_json(self._path, self.rows)

    def unavailable(self, what: str, why: str) -> None:
        """Adds what could not be found out, and why."""
        self.add(what, None, why=why)


def _plain(value: Any) -> Any:
    """JSON knows neither NaN nor infinity: they become text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, str | int | float | None):
        return value
    return str(value)
