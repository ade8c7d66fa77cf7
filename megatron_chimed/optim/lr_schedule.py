"""The learning rate as a pure function of the step, so that nothing of it needs to be saved."""

import math

from megatron_chimed.config.optim import OptimConfig


def learning_rate(config: OptimConfig, *, step: int, total_steps: int) -> float:
    """Rate of one step.

    It rises linearly to `lr` over the warm-up, then follows the schedule and reaches `min_lr` at
    the last step. A warm-up that covers the whole run ends at `lr`.

    Args:
        config: Peak, final rate and shape.
        step: The step about to be made; the first is 1.
        total_steps: Steps of the whole run.

    Source: Loshchilov and Hutter, SGDR (arXiv 1608.03983), eq. 5, without restarts.
    """
    warmup = config.warmup_steps
    if warmup is None:
        warmup = math.ceil(config.warmup_fraction * total_steps)
    if step <= warmup:
        return config.lr * step / warmup
    if config.lr_schedule == "constant":
        return config.lr
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    shape = 1 - progress
    if config.lr_schedule == "cosine":
        shape = 0.5 * (1 + math.cos(math.pi * progress))
    return config.min_lr + (config.lr - config.min_lr) * shape
