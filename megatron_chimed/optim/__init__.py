"""The learning-rate schedule."""

from megatron_chimed.optim.lr_schedule import learning_rate

__all__ = ["learning_rate"]
