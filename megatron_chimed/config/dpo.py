"""The objective of direct preference optimisation."""

from dataclasses import dataclass
from typing import Literal

from megatron_chimed.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DPOConfig:
    """The objective of `stage: dpo`."""

    beta: float = 0.1
    """Strength of the KL penalty towards the reference: the policy's implicit reward is
    beta log(policy / reference)."""
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    """`sigmoid`: the loss of DPO; `ipo`: squared distance of the margin from 1 / (2 beta), which
    pairs without noise cannot drive to infinity."""
    label_smoothing: float = 0.0
    """Assumed share of pairs with swapped labels; for `sigmoid` only."""

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ConfigError: A value is out of range, or has no effect.
        """
        if not 0.0 < self.beta < float("inf"):
            raise ConfigError(f"--dpo.beta is {self.beta}: set it above 0; 0.1 is usual.")
        if not 0.0 <= self.label_smoothing < 0.5:
            raise ConfigError(
                f"--dpo.label_smoothing is {self.label_smoothing}: set it in [0, 0.5); at 0.5 "
                "the order of a pair carries no information."
            )
        if self.loss == "ipo" and self.label_smoothing:
            raise ConfigError(
                f"--dpo.label_smoothing is {self.label_smoothing}, but the loss ipo has none. Set "
                "it to 0, or --dpo.loss sigmoid."
            )
