"""When a run saves and what it starts from."""

from dataclasses import dataclass

from megatron_chimed.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Saving, resuming, and starting from other weights."""

    save_interval: int = 100
    """Steps between checkpoints, so the most that a killed run loses; 0 saves at the end only."""
    keep: int = 2
    """Newest checkpoints to keep, besides the best one; 0 keeps all."""
    keep_best: bool = True
    """Save after each validation that is the best so far, and keep that checkpoint until there is a
    better one: costs one save a time, and room for one more."""
    resume: bool = True
    """Go on from the newest valid checkpoint of the output folder, if it has one."""
    load: str | None = None
    """Checkpoint whose weights, and nothing else, a fresh run starts from: an imported one, say."""

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
