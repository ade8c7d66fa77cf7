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
    """Length, batch, precision and validation of a run."""

    train_steps: int | None = None
    """Optimizer steps of the whole run; or set `epochs`."""
    epochs: float | None = None
    """Passes over the training data, such as 3 or 0.5, instead of `train_steps`. At the start of
    the run they are converted to steps, rounded up, and stored as `train_steps`."""
    micro_batch_size: int = 1
    """Samples in one forward pass of a data-parallel rank."""
    global_batch_size: int = 1
    """Samples in one optimizer step over all ranks."""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    """Type of weights and activations; gradients, moments and master weights are always fp32."""
    seed: int = 1234
    """Seed of initial weights, sample order and dropout."""
    eval_interval: int = 0
    """Steps between validations; 0 validates at the end only."""
    eval_at_start: bool = False
    """Also validate the weights that a new run starts from, as step 0."""
    eval_steps: int = 0
    """Global batches of a validation; 0 reads the whole validation set once."""
    early_stop_patience: int = 0
    """Stop after this many validations without a lower loss (`checkpoint.keep_best` keeps the best
    checkpoint); 0: never."""
    stop_step: int = 0
    """Save and stop at this step, to resume later with the same command; 0: never."""
    self_test: bool = True
    """With packed samples, verify before the first step that they do not attend to each other."""
    deterministic: bool = False
    """Use deterministic torch kernels: slower on GPU; on CPU with a fixed number of threads, always
    the case."""

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
                "validated during training. Set --training.eval_interval too."
            )

    def _check_length(self) -> None:
        if self.train_steps is None and self.epochs is None:
            raise ConfigError(
                "nothing says how long to train. Set --training.epochs, the number of passes over "
                "the data, such as 3, or --training.train_steps."
            )
        if self.train_steps is not None and self.epochs is not None:
            raise ConfigError(
                f"--training.train_steps is {self.train_steps} and --training.epochs "
                f"{self.epochs:g}: only one of them can be set. Set the other to null."
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
        """The same with `train_steps` in place of `epochs`, for this many samples per epoch."""
        assert self.epochs is not None, "train_steps is set already"
        return dataclasses.replace(
            self,
            train_steps=steps_of_epochs(self.epochs, samples, self.global_batch_size),
            epochs=None,
        )

    @property
    def total_steps(self) -> int:
        """`train_steps`, once `with_steps_for` has converted `epochs`."""
        assert self.train_steps is not None, "epochs have not been converted to steps"
        return self.train_steps

    @property
    def end_step(self) -> int:
        """The step at which this start of the run ends."""
        return min(self.total_steps, self.stop_step or self.total_steps)


def steps_of_epochs(epochs: float, samples: float, global_batch_size: int) -> int:
    """Steps that read `samples` `epochs` times, rounded up.

    A millionth of a step is ignored, so that rounding in `epochs` does not add a step.
    """
    return max(1, math.ceil(epochs * samples / global_batch_size - 1e-6))
