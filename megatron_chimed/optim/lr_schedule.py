"""The learning rate as a pure function of the step, so that nothing of it needs to be saved."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

from megatron_chimed.config.optim import OptimConfig

_SHAPES: Mapping[str, Callable[[float], float]] = MappingProxyType(
    {
        "linear": lambda progress: 1 - progress,
        "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
        "minus_sqrt": lambda progress: 1 - math.sqrt(progress),
    }
)


def learning_rate(config: OptimConfig, *, step: int, total_steps: int) -> float:
    """Rate of one step.

    It rises linearly to `lr` over the warm-up, then follows the schedule and reaches `min_lr` at
    the last step. A warm-up that covers the whole run ends at `lr`. `wsd` (warm-up, stable, decay)
    stays at `lr` until the decay, which is never longer than what the warm-up leaves.

    Args:
        config: Peak, final rate and shape.
        step: The step about to be made; the first is 1.
        total_steps: Steps of the whole run.

    Source: Loshchilov and Hutter, SGDR (arXiv 1608.03983), eq. 5, without restarts; MiniCPM (arXiv
        2404.06395), section 4.2, for `wsd`; Haegele et al. (arXiv 2405.18392) for `minus_sqrt`.
    """
    warmup = config.warmup_steps
    if warmup is None:
        warmup = math.ceil(config.warmup_fraction * total_steps)
    if step <= warmup:
        return config.lr * step / warmup
    if config.lr_schedule == "constant":
        return config.lr
    falling, shape = total_steps - warmup, config.lr_schedule
    if shape == "wsd":
        falling, shape = min(falling, _decay_steps(config, total_steps)), config.decay_shape
    progress = min(1.0, max(0, step - (total_steps - falling)) / max(1, falling))
    return config.min_lr + (config.lr - config.min_lr) * _SHAPES[shape](progress)


def _decay_steps(config: OptimConfig, total_steps: int) -> int:
    if config.decay_steps is not None:
        return config.decay_steps
    return math.ceil(config.decay_fraction * total_steps)
