"""What counts as dead, and how often it is tried again."""

import dataclasses
import math
from dataclasses import dataclass

from megatron_chimed import errors

# Another start would end as this one did.
NOT_RETRIED = frozenset(
    kind.exit_code
    for kind in (
        errors.ConfigError,
        errors.DataError,
        errors.KernelError,
        errors.NumericError,
        errors.UnsafeInputError,
    )
)
RETRY = errors.ParallelError.exit_code
INTERRUPTED = errors.InterruptError.exit_code
# Between agent and launcher only (EX_UNAVAILABLE): the nodes did not meet, so no rank began.
NOT_MET = 69


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Numbers of tries and times in seconds; the first six are for users to set."""

    max_restarts: int = 5
    """Restarts in a row that bring no newer checkpoint."""
    join_seconds: int = 600
    """Longest wait of one attempt for the other nodes."""
    wait_seconds: float = 3600.0
    """Longest wait for them over all attempts in a row that did not meet them."""
    stall_seconds: float = 1800.0
    """Longest time in which running workers write nothing into the run's folder."""
    grace_seconds: float = 300.0
    """For workers to save and end after the launcher got SIGTERM."""
    drain_seconds: float = 30.0
    """For an attempt to end by itself once its workers have ended or a peer is lost."""
    kill_seconds: float = 60.0
    """For a killed process to be gone."""
    poll_seconds: float = 0.5
    """Between two looks at the processes."""
    look_seconds: float = 10.0
    """Between two looks at the run's folder: what was written, and the other nodes' state."""
    first_delay_seconds: float = 1.0
    """Before the first restart; each in a row doubles it."""
    max_delay_seconds: float = 30.0
    """Longest such pause."""

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ConfigError: A limit is negative.
        """
        for name, value in vars(self).items():
            if value < 0:
                flag = name.replace("_", "-")
                raise errors.ConfigError(f"--{flag} is {value:g}: set 0 or more.")

    @property
    def is_watched(self) -> bool:
        """Whether a run's folder tells that the job lives."""
        return self.stall_seconds < math.inf

    def unwatched(self) -> "Limits":
        """The same for a command that resumes nothing and may be silent for long."""
        return dataclasses.replace(self, max_restarts=0, stall_seconds=math.inf)
