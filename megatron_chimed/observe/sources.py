"""Losses of the sources of a blend: summed over steps, so that hundreds of them stay small."""

from collections.abc import Mapping

Sums = Mapping[str, tuple[float, float]]
"""By source the sum of its tokens' losses, and how many tokens they are."""

STEPS_PER_SOURCE = 5  # an event of n sources for every n / 5 steps: about 0.3 kB a step
PREFIX, COUNT_PREFIX = "loss/", "tokens/"
MOST_SHOWN = 4
NAME_WIDTH = 32


class SourceSums:
    """Sums of training steps that no event has told yet.

    Args:
        interval: Steps of an event; 0: one for each 5 sources, rounded up.
    """

    def __init__(self, interval: int) -> None:
        self._interval = interval
        self._sums: dict[str, list[float]] = {}
        self._seen: set[str] = set()
        self._num_steps = 0

    def add(self, sums: Sums) -> None:
        """Takes those of a step."""
        for name, (loss, tokens) in sums.items():
            total = self._sums.setdefault(name, [0.0, 0.0])
            total[0] += loss
            total[1] += tokens
        self._seen |= sums.keys()
        self._num_steps += 1

    @property
    def is_due(self) -> bool:
        """Whether the interval is over."""
        interval = self._interval or -(-len(self._seen) // STEPS_PER_SOURCE)
        return self._num_steps >= max(1, interval)

    def take(self) -> dict[str, float]:
        """The fields of an event, after which nothing is left; empty without a source's token."""
        fields = fields_of({name: (loss, tokens) for name, (loss, tokens) in self._sums.items()})
        if fields:
            fields = {"steps": self._num_steps, **fields}
        self._sums, self._num_steps = {}, 0
        return fields


def fields_of(sums: Sums) -> dict[str, float]:
    """`loss/<name>`, the mean over its tokens, and `tokens/<name>` of each source that has any."""
    return {
        key: value
        for name, (loss, tokens) in sorted(sums.items())
        if tokens
        for key, value in ((PREFIX + name, loss / tokens), (COUNT_PREFIX + name, int(tokens)))
    }


def losses_of(event: Mapping[str, object]) -> dict[str, float]:
    """The losses of an event by source."""
    return {
        name.removeprefix(PREFIX): float(value)
        for name, value in event.items()
        if name.startswith(PREFIX)
    }


def describe_sources(losses: Mapping[str, float]) -> str:
    """One line: every source where they are few, else the worst of them; "" for none."""
    if not losses:
        return ""
    worst = sorted(losses, key=losses.__getitem__, reverse=True)[:MOST_SHOWN]
    shown = losses if len(losses) <= MOST_SHOWN else worst
    label = "losses of sources" if shown is losses else f"worst of {len(losses)} sources"
    return f"{label}: " + ", ".join(f"{shorten(name)} {losses[name]:.4f}" for name in shown)


def shorten(name: str) -> str:
    """A name as a line or a legend has room for it: its end tells most, so the middle goes."""
    if len(name) <= NAME_WIDTH:
        return name
    return f"{name[: NAME_WIDTH // 4]}...{name[3 - NAME_WIDTH + NAME_WIDTH // 4 :]}"
