"""Which implementation of the fused ops a run uses."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from megatron_chimed.errors import ConfigError

if TYPE_CHECKING:
    from megatron_chimed.kernels import Kernels

BACKENDS = ("auto", "fused", "reference")


@dataclass(frozen=True, kw_only=True)
class KernelConfig:
    """Settings of the fused kernels."""

    backend: Literal["auto", "fused", "reference"] = "auto"
    """`auto` uses a fused kernel wherever one is available, `fused` fails where none is,
    `reference` is plain torch."""

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise ConfigError(
                f"kernels.backend is {self.backend!r}: it must be one of {', '.join(BACKENDS)}."
            )

    @property
    def fuses_weight_gradients(self) -> bool:
        """Whether the product that makes a weight's gradient also adds it to its buffer.

        On CPU, whether linear layers are ours altogether.
        """
        return self.backend != "reference"

    def ops(self) -> "Kernels":
        """The ops with this backend; imports torch."""
        from megatron_chimed.kernels import bind

        return bind(self.backend)
