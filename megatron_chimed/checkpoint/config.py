"""When a run saves and what it starts from."""

from dataclasses import dataclass

from megatron_chimed.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Saving, resuming, and starting from other weights."""

    save_interval: int = 0
    """Steps between checkpoints; 0 saves at the end only."""
    keep: int = 2
    """Newest checkpoints to keep (and the best one of a run that stops early); 0 keeps all."""
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
