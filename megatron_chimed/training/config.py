"""Settings of the training loop."""

from dataclasses import dataclass
from typing import Literal

from megatron_chimed.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, how large, how precise, and how often to look."""

    train_steps: int
    """Optimizer steps of the whole run."""
    micro_batch_size: int = 1
    """Samples in one forward pass of a data-parallel rank."""
    global_batch_size: int = 1
    """Samples in an optimizer step, over all ranks."""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    """Type of weights and activations; gradients, moments and main weights are always fp32."""
    seed: int = 1234
    """Of fresh weights, the order of samples and dropout."""
    eval_interval: int = 0
    """Steps between validations; 0 validates at the end only."""
    eval_at_start: bool = False
    """Validate the weights that a fresh run starts from too, as step 0, to see what it changes."""
    eval_steps: int = 0
    """Global batches of a validation; 0 reads the whole validation set once."""
    early_stop_patience: int = 0
    """Stop after so many validations without a better loss (`checkpoint.keep_best` keeps the one
    that had it); 0: never."""
    stop_step: int = 0
    """Save and end at this step of the schedule, to go on later with the same command; 0: never."""
    self_test: bool = True
    """With packed samples, prove before the first step that they see nothing of each other."""
    deterministic: bool = False
    """Ask torch for deterministic kernels: slower on GPU, always so on CPU with fixed threads."""

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ConfigError: A value is out of range.
        """
        for name in ("train_steps", "micro_batch_size", "global_batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"--training.{name} is {getattr(self, name)}: it must be at least 1."
                )
        for name in ("eval_interval", "eval_steps", "early_stop_patience", "stop_step", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"--training.{name} is {getattr(self, name)}: set 0 or more.")
        if self.early_stop_patience and not self.eval_interval:
            raise ConfigError(
                f"--training.early_stop_patience is {self.early_stop_patience}, but nothing is "
                "validated on the way. Set --training.eval_interval too."
            )
