"""Which implementation of the fused ops a run uses."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from megatron_chimed.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from megatron_chimed.kernels import Kernels

BACKENDS = ("auto", "fused", "cuda", "triton", "reference")


@dataclass(frozen=True, kw_only=True)
class KernelConfig:
    """Settings of the fused kernels."""

    backend: Literal["auto", "fused", "cuda", "triton", "reference"] = "auto"
    """`auto` uses a compiled kernel wherever one runs, else on a GPU Triton's where Triton can be
    imported, else plain torch. `fused` fails where the device has no compiled kernel, `cuda` also
    on CPU. `triton` fails where Triton cannot run, and is `auto` for ops without a Triton kernel.
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

    def ops(self, device: "torch.device | None" = None) -> "Kernels":
        """The ops with this backend; imports torch.

        Args:
            device: Where they will run; None: not known yet, and the first call refuses.

        Raises:
            KernelError: The device has no kernels of this backend.
        """
        from megatron_chimed.kernels import bind

        return bind(self.backend, device=device)
