"""What counts as dead, and how often a failed attempt is retried."""

import dataclasses
import math
from dataclasses import dataclass

from megatron_chimed import errors

# Another attempt would fail in the same way.
NOT_RETRIED = frozenset(
    kind.exit_code
    for kind in (
        errors.ConfigError,
        errors.DataError,
        errors.GpuMemoryError,
        errors.KernelError,
        errors.NumericError,
        errors.UnsafeInputError,
    )
)
RETRY = errors.ParallelError.exit_code
INTERRUPTED = errors.InterruptError.exit_code
# Between agent and launcher only (EX_UNAVAILABLE): the nodes did not meet, so no rank started.
NO_RENDEZVOUS = 69


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Numbers of attempts and times in seconds; users set the first six."""

    max_restarts: int = 5
    """Consecutive restarts that produce no newer checkpoint."""
    join_seconds: int = 600
    """Longest wait of one attempt for the other nodes."""
    wait_seconds: float = 3600.0
    """Longest wait for the other nodes over all consecutive attempts."""
    stall_seconds: float = 1800.0
    """Longest time in which running workers write nothing into the run's folder."""
    grace_seconds: float = 300.0
    """Time for workers to save and end after the launcher received SIGTERM."""
    drain_seconds: float = 30.0
    """Time for an attempt to end by itself once its workers have ended or a peer is lost."""
    kill_seconds: float = 60.0
    """Time for a killed process to be gone."""
    poll_seconds: float = 0.5
    """Interval at which processes are polled."""
    refresh_seconds: float = 10.0
    """Interval at which the run's folder is read: what was written, and the other nodes' states."""
    first_delay_seconds: float = 1.0
    """Delay before the first restart; each consecutive one doubles it."""
    max_delay_seconds: float = 30.0
    """Longest such delay."""

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
        """Whether writes into the run's folder show that the job is alive."""
        return self.stall_seconds < math.inf

    def unwatched(self) -> "Limits":
        """The same for a command that cannot be resumed and may write nothing for long."""
        return dataclasses.replace(self, max_restarts=0, stall_seconds=math.inf)
