"""RMSNorm that supports sequence parallelism."""

import torch

from megatron_chimed.engine import EngineSettings, ShardSpec, mark_sequence_parallel
from megatron_chimed.kernels import AUTO, Kernels


class RMSNorm(torch.nn.Module):
    """y = x / rms(x) * weight, computed in fp32, cast, then scaled.

    Source: Zhang and Sennrich, Root Mean Square Layer Normalization (arXiv 1910.07467), eq. 4; the
    order of cast and scale is LLaMA's.
    """

    def __init__(
        self, name: str, *, eps: float, settings: EngineSettings, kernels: Kernels = AUTO
    ) -> None:
        super().__init__()
        self.name, self.eps, self.kernels = name, eps, kernels
        self.weight = torch.nn.Parameter(
            torch.empty(settings.hidden_size, dtype=settings.params_dtype, device=_device(settings))
        )
        mark_sequence_parallel(self.weight, settings)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[.., h] -> [.., h] of the same dtype."""
        return self.kernels.rms_norm(x, self.weight, eps=self.eps)

    def after_adding(
        self, update: torch.Tensor, residual: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(norm of the sum, the sum) of two tensors [.., h], in one pass."""
        return self.kernels.add_rms_norm(update, residual, self.weight, eps=self.eps)

    def shard_specs(self, prefix: str) -> list[ShardSpec]:
        """The whole weight, on every rank."""
        size = self.weight.numel()
        return [
            ShardSpec(
                key=f"{prefix}{self.name}.weight",
                global_shape=(size,),
                offset=(0,),
                first_row=0,
                rows=size,
            )
        ]


def _device(settings: EngineSettings) -> torch.device | str:
    return "cpu" if settings.use_cpu_initialization else "cuda"
