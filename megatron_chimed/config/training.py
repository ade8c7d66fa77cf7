"""Settings of the training loop."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

from megatron_chimed.errors import ConfigError
from megatron_chimed.field_types import check_types

MAX_EPOCHS = 1_000_000
_MOST_SAMPLES = 1 << 24  # of a step: the list of its samples is made at once


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, how large, how precise, and how often to look."""

    train_steps: int | None = None
    """Optimizer steps of the whole run; or say `epochs`."""
    epochs: float | None = None
    """How often the run reads its training data, such as 3 or 0.5, instead of `train_steps`: it
    becomes whole steps, rounded up, as the run starts, and is stored as those."""
    micro_batch_size: int = 1
    """Samples in one forward pass of a data-parallel rank."""
    global_batch_size: int = 1
    """Samples in an optimizer step, over all ranks."""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    """Type of weights and activations; gradients, moments and master weights are always fp32."""
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
        check_types(self, "training")
        self._check_length()
        for name in ("micro_batch_size", "global_batch_size"):
            if not 1 <= getattr(self, name) <= _MOST_SAMPLES:
                raise ConfigError(
                    f"--training.{name} is {getattr(self, name)}: it must be at least 1, and at "
                    f"most {_MOST_SAMPLES}."
                )
        for name in ("eval_interval", "eval_steps", "early_stop_patience", "stop_step", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"--training.{name} is {getattr(self, name)}: set 0 or more.")
        if self.early_stop_patience and not self.eval_interval:
            raise ConfigError(
                f"--training.early_stop_patience is {self.early_stop_patience}, but nothing is "
                "validated on the way. Set --training.eval_interval too."
            )

    def _check_length(self) -> None:
        if self.train_steps is None and self.epochs is None:
            raise ConfigError(
                "nothing says how long to train. Set --training.epochs, how often to read the "
                "data, such as 3, or --training.train_steps."
            )
        if self.train_steps is not None and self.epochs is not None:
            raise ConfigError(
                f"--training.train_steps is {self.train_steps} and --training.epochs "
                f"{self.epochs:g}: one of them says how long to train. Set the other to null."
            )
        if self.train_steps is not None and self.train_steps < 1:
            raise ConfigError(
                f"--training.train_steps is {self.train_steps}: it must be at least 1."
            )
        if self.epochs is not None and not 0.0 < self.epochs <= MAX_EPOCHS:
            raise ConfigError(
                f"--training.epochs is {self.epochs:g}: set it above 0, such as 3 or 0.5, and to "
                f"at most {MAX_EPOCHS}."
            )

    def with_steps_for(self, samples: int) -> "TrainConfig":
        """The same with `train_steps` in place of `epochs`, for so many samples in an epoch."""
        assert self.epochs is not None, "the number of steps was said"
        return dataclasses.replace(
            self,
            train_steps=steps_of_epochs(self.epochs, samples, self.global_batch_size),
            epochs=None,
        )


def steps_of_epochs(epochs: float, samples: float, global_batch_size: int) -> int:
    """Steps that read `samples` so many times; what does not fill a step goes on into the next.

    3 x 0.1 samples must not cost a step more than 0.3: a millionth of a step counts as none.
    """
    return max(1, math.ceil(epochs * samples / global_batch_size - 1e-6))
