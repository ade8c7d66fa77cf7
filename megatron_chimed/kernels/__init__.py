"""Python face of the fused kernels: one file per op, reference and dispatch side by side."""

from megatron_chimed.kernels.adam import FusedAdam

__all__ = ["FusedAdam"]
