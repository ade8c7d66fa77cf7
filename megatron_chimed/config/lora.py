"""Which matrices get LoRA adapters, and of which size."""

import math
from dataclasses import dataclass
from typing import Literal

from megatron_chimed.errors import ConfigError

Target = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Which matrices get adapters, and how large."""

    rank: int = 0
    """Rows of A and columns of B; 0: no adapters, every weight is trained."""
    alpha: float = 16.0
    """B A is multiplied by alpha / rank."""
    dropout: float = 0.0
    """Dropout of the input of A; matrices with the same input share the mask."""
    targets: tuple[Target, ...] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )
    """The matrices of every layer that get adapters."""

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ConfigError: A value is out of range.
        """
        if self.rank < 0:
            raise ConfigError(f"--lora.rank is {self.rank}: set it above 0, or to 0 for none.")
        if not 0.0 < self.alpha < math.inf:
            raise ConfigError(f"--lora.alpha is {self.alpha}: set it above 0.")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"--lora.dropout is {self.dropout}: set it in [0, 1).")
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise ConfigError(
                f"--lora.targets is {list(self.targets)}: name at least one matrix, each once."
            )

    @property
    def scale(self) -> float:
        """The factor alpha / rank of B A."""
        return self.alpha / self.rank
