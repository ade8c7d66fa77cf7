"""Optimizer and learning-rate settings; the defaults are Ziya2's where its paper gives them."""

import math
from dataclasses import dataclass
from typing import Literal

from megatron_chimed.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW and its schedule.

    Source: Ziya2 (arXiv 2311.03301), section 5: betas, weight decay, clipping, 1 % warm-up and a
    final rate of 1e-5. It does not state the peak rate; 1e-4 is a common choice at this size.
    """

    lr: float = 1e-4
    """Peak learning rate."""
    min_lr: float = 1e-5
    """Learning rate at the last step."""
    lr_schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """Shape from the peak to the final rate; `wsd` stays at the peak and decays at the end."""
    decay_fraction: float = 0.1
    """wsd: share of all steps with a falling rate, the last ones; used if `decay_steps` is null."""
    decay_steps: int | None = None
    """wsd: steps with a falling rate."""
    decay_shape: Literal["linear", "minus_sqrt", "cosine"] = "linear"
    """wsd: how the rate falls."""
    warmup_fraction: float = 0.01
    """Share of all steps with a linearly rising rate; used if `warmup_steps` is null."""
    warmup_steps: int | None = None
    """Steps with a linearly rising rate."""
    adam_beta1: float = 0.9
    """Decay of the first moment."""
    adam_beta2: float = 0.95
    """Decay of the second moment."""
    adam_eps: float = 1e-8
    """Added to Adam's denominator."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices; norms have none."""
    clip_grad: float = 1.0
    """Largest gradient norm of the whole model; 0: no clipping."""
    initial_loss_scale: float = 4096.0
    """fp16: initial factor on the loss; halved on overflow, doubled after a window without one.
    Losses are sums over tokens, so the gradient of a logit is as large as the factor."""
    loss_scale_window: int = 1000
    """fp16: steps without overflow before the factor doubles."""
    offload: bool = False
    """Keeps fp32 master weights and moments in host memory and updates them on the CPU: 12 bytes a
    parameter less on the GPU, for slower steps."""

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ConfigError: A value is out of range.
        """
        if not 0 <= self.min_lr <= self.lr or not math.isfinite(self.lr):
            raise ConfigError(
                f"--optim.lr is {self.lr} and --optim.min_lr {self.min_lr}: the rate falls from lr "
                "to min_lr, so 0 <= min_lr <= lr. Lower min_lr or raise lr."
            )
        for name in ("warmup_fraction", "adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"--optim.{name} is {getattr(self, name)}: set it in [0, 1).")
        for name in ("weight_decay", "clip_grad"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"--optim.{name} is {getattr(self, name)}: set it to 0 or more.")
        for name in ("adam_eps", "initial_loss_scale", "loss_scale_window"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"--optim.{name} is {getattr(self, name)}: set it above 0.")
        if not 0 < self.decay_fraction <= 1:
            raise ConfigError(
                f"--optim.decay_fraction is {self.decay_fraction}: set it above 0, to 1 at most."
            )
        if self.decay_steps is not None and self.decay_steps < 1:
            raise ConfigError(f"--optim.decay_steps is {self.decay_steps}: set it to 1 or more.")
        if self.warmup_steps is not None and self.warmup_steps < 0:
            raise ConfigError(f"--optim.warmup_steps is {self.warmup_steps}: set it to 0 or more.")
