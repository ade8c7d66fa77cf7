"""When a run saves checkpoints, and what it starts from."""

from dataclasses import dataclass

from megatron_chimed.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Saving, resuming, and starting from other weights."""

    save_interval: int = 100
    """Steps between checkpoints: the most that a killed run loses; 0 saves only at the end."""
    keep: int = 2
    """Number of newest checkpoints to keep, besides the best one; 0: all."""
    keep_best: bool = True
    """Save after each validation that is the best so far, and keep that checkpoint until a better
    one replaces it: each costs a save, and disk space for one more checkpoint."""
    resume: bool = True
    """Resume from the newest valid checkpoint in the output folder, if there is one."""
    load: str | None = None
    """Checkpoint whose weights a fresh run starts from, for example an imported model."""

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ConfigError: A value is out of range.
        """
        if self.save_interval < 0:
            raise ConfigError(
                f"--checkpoint.save_interval is {self.save_interval}: set 0 or more steps."
            )
        if self.keep < 0 or self.keep == 1:
            raise ConfigError(
                f"--checkpoint.keep is {self.keep}: a damaged newest checkpoint needs one to fall "
                "back to. Set 2 or more, or 0 to keep all."
            )
