"""Wall time of steps: a stopwatch for the loop and moving averages for the display."""

import time
from collections.abc import Callable


class Stopwatch:
    """Seconds between laps on a monotonic clock.

    On a GPU a lap is meaningful only after the host has waited for the step's work, as reading the
    loss does.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._last = clock()

    def lap(self) -> float:
        """Seconds since the last lap (or since creation); starts the next lap."""
        now = self._clock()
        seconds, self._last = now - self._last, now
        return seconds


class StepRate:
    """Exponential moving averages of seconds and tokens per step.

    Both start at zero and are divided by the weight seen so far, like Adam's bias correction, so
    that the first steps are averaged evenly. Time between steps (validation, checkpoints) does not
    count.

    Args:
        decay: Weight of the past at each step; 0.9 averages about 10 steps.
    """

    def __init__(self, decay: float = 0.9) -> None:
        self._decay = decay
        self._weight = 0.0
        self._seconds = 0.0
        self._tokens = 0.0

    def update(self, *, seconds: float, tokens: int) -> None:
        """Adds one step."""
        keep, add = self._decay, 1.0 - self._decay
        self._weight = keep * self._weight + add
        self._seconds = keep * self._seconds + add * seconds
        self._tokens = keep * self._tokens + add * tokens

    @property
    def tokens_per_second(self) -> float:
        """Recent throughput; 0 before the first step."""
        return self._tokens / self._seconds if self._seconds > 0 else 0.0

    def seconds_for(self, steps: int) -> float:
        """Time for `steps` more steps at the recent pace; 0 before the first step."""
        return steps * self._seconds / self._weight if self._weight > 0 else 0.0
