"""Figures: numbers of a report with how sure they are and what they are about."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A 95 % interval."""

    low: float
    high: float
    method: str
    """Such as `Wilson`."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number."""

    metric: str
    """Such as `accuracy`; with how it was averaged where that could be mistaken."""
    value: float | None
    """None: nothing could be evaluated."""
    num_used: int
    """Items that it is about."""
    group: str = ""
    """Part of the items, such as a subject; "": all."""
    interval: Interval | None = None
    """None: its uncertainty is unknown, which the report says."""
    higher_is_better: bool | None = None
    """None: neither, such as a length."""
    signature: str = ""
    """What must be equal to compare two values, such as how a text score divides words."""
    note: str = ""
    """What a reader must know beside the value, such as that it is that of random answers."""


@dataclass(frozen=True, kw_only=True)
class MeasuredItem:
    """What became of one item of a task."""

    id: str
    """Unique within the measure."""
    group: str
    """Such as its subject."""
    prompt: str
    """As rendered for the model, with the shots that fitted."""
    response: Any
    """What the model returned, as JSON; None if the item was dropped."""
    scores: Mapping[str, float]
    """By name; what the figures are made of."""
    details: Mapping[str, Any]
    """What else a reader wants to see, such as the right letters."""
    dropped: str | None = None
    """Why it was not evaluated; None: it was."""


def dropped_by_reason(items: Iterable[MeasuredItem]) -> dict[str, int]:
    """Numbers of items that were not evaluated."""
    reasons: dict[str, int] = {}
    for item in items:
        if item.dropped is not None:
            reasons[item.dropped] = reasons.get(item.dropped, 0) + 1
    return dict(sorted(reasons.items()))
