"""Learning-rate schedule and optimizer settings."""

from megatron_chimed.optim.config import OptimConfig
from megatron_chimed.optim.lr_schedule import learning_rate

__all__ = ["OptimConfig", "learning_rate"]
