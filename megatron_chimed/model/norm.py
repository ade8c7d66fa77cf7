"""RMSNorm that supports sequence parallelism."""

from typing import Any, cast

import torch
import torch.distributed as dist

from megatron_chimed.engine import EngineSettings, ShardSpec, mark_sequence_parallel
from megatron_chimed.kernels import AUTO, Kernels


class RMSNorm(torch.nn.Module):
    """y = x / rms(x) * weight, computed in fp32, cast, then scaled.

    Source: Zhang and Sennrich, Root Mean Square Layer Normalization (arXiv 1910.07467), eq. 4; the
    order of cast and scale is LLaMA's.
    """

    copies = 1

    def __init__(
        self,
        name: str,
        *,
        eps: float,
        settings: EngineSettings,
        kernels: Kernels = AUTO,
        size: int | None = None,
    ) -> None:
        super().__init__()
        self.name, self.eps, self.kernels = name, eps, kernels
        size = settings.hidden_size if size is None else size
        self.weight = torch.nn.Parameter(
            torch.empty(size, dtype=settings.params_dtype, device=_device(settings))
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
                copies=self.copies,
            )
        ]


class HeadNorm(RMSNorm):
    """Norm of each head by itself, as Qwen3 has for queries and keys; [.., d].

    The weight is one for all heads: tensor-parallel ranks, each with its own heads, have a part of
    its gradient each, with and without sequence parallelism.

    Source: Henry et al., Query-Key Normalization (arXiv 2010.04245), with RMSNorm.
    """

    def __init__(
        self,
        name: str,
        size: int,
        *,
        eps: float,
        settings: EngineSettings,
        group: dist.ProcessGroup,
        kernels: Kernels = AUTO,
    ) -> None:
        super().__init__(name, eps=eps, settings=settings, kernels=kernels, size=size)
        self.copies = group.size()
        cast(Any, self.weight).sequence_parallel = False  # summed by `engine.shared_rows` instead


def _device(settings: EngineSettings) -> torch.device | str:
    return "cpu" if settings.use_cpu_initialization else "cuda"
