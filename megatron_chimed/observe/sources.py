"""Losses by source of a blend, summed over steps so that hundreds of sources stay small."""

from collections.abc import Mapping
from typing import Any

Sums = Mapping[str, tuple[float, float]]
"""(sum of token losses, number of tokens) by source."""

SOURCES_PER_STEP = 5  # n sources make an event every n / 5 steps: about 0.3 kB per step
PREFIX, COUNT_PREFIX = "loss/", "tokens/"
MAX_SHOWN = 4
NAME_WIDTH = 32


class SourceSums:
    """Sums over the training steps since the last event.

    Args:
        interval: Steps per event; 0: one step for each 5 sources, rounded up.
    """

    def __init__(self, interval: int) -> None:
        self._interval = interval
        self._sums: dict[str, list[float]] = {}
        self._seen: set[str] = set()
        self._num_steps = 0

    def add(self, sums: Sums) -> None:
        """Adds the sums of a step."""
        for name, (loss, tokens) in sums.items():
            total = self._sums.setdefault(name, [0.0, 0.0])
            total[0] += loss
            total[1] += tokens
        self._seen |= sums.keys()
        self._num_steps += 1

    @property
    def is_due(self) -> bool:
        """Whether the interval is over."""
        interval = self._interval or -(-len(self._seen) // SOURCES_PER_STEP)
        return self._num_steps >= max(1, interval)

    def take(self) -> dict[str, float]:
        """Returns the fields of an event and resets the sums; empty if no source had a token."""
        fields = fields_of({name: (loss, tokens) for name, (loss, tokens) in self._sums.items()})
        if fields:
            fields = {"steps": self._num_steps, **fields}
        self._sums, self._num_steps = {}, 0
        return fields


def fields_of(sums: Sums) -> dict[str, float]:
    """`loss/<name>`, the mean over tokens, and `tokens/<name>` of each source that has any."""
    return {
        key: value
        for name, (loss, tokens) in sorted(sums.items())
        if tokens
        for key, value in ((PREFIX + name, loss / tokens), (COUNT_PREFIX + name, int(tokens)))
    }


def losses_of(event: Mapping[str, Any]) -> dict[str, float]:
    """The losses in an event, by source."""
    return {
        name.removeprefix(PREFIX): float(value)
        for name, value in event.items()
        if name.startswith(PREFIX)
    }


def describe_sources(losses: Mapping[str, float]) -> str:
    """One line with all sources if they are few, otherwise with the worst; "" for none."""
    if not losses:
        return ""
    worst = sorted(losses, key=losses.__getitem__, reverse=True)[:MAX_SHOWN]
    shown = losses if len(losses) <= MAX_SHOWN else worst
    label = "losses of sources" if shown is losses else f"worst of {len(losses)} sources"
    return f"{label}: " + ", ".join(f"{shorten(name)} {losses[name]:.4f}" for name in shown)


def shorten(name: str) -> str:
    """A name shortened for a line or legend; its end is the most telling, so the middle goes."""
    if len(name) <= NAME_WIDTH:
        return name
    return f"{name[: NAME_WIDTH // 4]}...{name[3 - NAME_WIDTH + NAME_WIDTH // 4 :]}"
