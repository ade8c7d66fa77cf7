"""One decoder layer: attention and SwiGLU, each with a norm before and a residual connection."""

import contextlib
from functools import partial

import torch
import torch.distributed as dist
import torch.nn.functional as F

from megatron_chimed.config.model import ModelConfig
from megatron_chimed.engine import EngineSettings, tensor_parallel_stream
from megatron_chimed.kernels import AUTO, Kernels
from megatron_chimed.model.attention import Attention, AttentionContext
from megatron_chimed.model.norm import RMSNorm
from megatron_chimed.model.parallel import FusedColumnParallelLinear, RowParallelLinear
from megatron_chimed.model.recompute import Recomputed


class MLP(torch.nn.Module):
    """down(silu(gate(x)) * up(x)); the width f is split over the tensor-parallel ranks."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        settings: EngineSettings,
        group: dist.ProcessGroup,
        kernels: Kernels = AUTO,
    ) -> None:
        super().__init__()
        self.kernels = kernels
        width = config.ffn_hidden_size
        self.selective = config.recompute == "selective"
        self.gate_up_proj = FusedColumnParallelLinear(
            config.hidden_size,
            {"gate_proj": width, "up_proj": width},
            settings=settings,
            group=group,
        )
        self.down_proj = RowParallelLinear(
            "down_proj", width, config.hidden_size, settings=settings, group=group
        )

    def forward(self, normed: torch.Tensor, norm: Recomputed) -> torch.Tensor:
        """[s(/t), b, h] -> [s(/t), b, h]."""
        gate_up = self.gate_up_proj(normed)  # [s, b, 2f/t]
        norm.release(consumed_by=gate_up)
        product = Recomputed(self.selective)
        output = self.down_proj(product(self.kernels.swiglu, gate_up))
        product.release(consumed_by=output)
        return output


class DecoderLayer(torch.nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        *,
        settings: EngineSettings,
        group: dist.ProcessGroup,
        kernels: Kernels = AUTO,
    ) -> None:
        super().__init__()
        self.dropout = config.hidden_dropout
        self.selective = config.recompute == "selective"
        self.sequence_parallel = settings.sequence_parallel
        norm = partial(RMSNorm, eps=config.rms_norm_eps, settings=settings, kernels=kernels)
        shared = {"settings": settings, "group": group, "kernels": kernels}
        self.input_layernorm = norm("input_layernorm")
        self.self_attn = Attention(config, layer, **shared)
        self.post_attention_layernorm = norm("post_attention_layernorm")
        self.mlp = MLP(config, **shared)

    def forward(self, hidden: torch.Tensor, context: AttentionContext) -> torch.Tensor:
        """[s(/t), b, h] -> [s(/t), b, h]."""
        norm = Recomputed(self.selective)
        normed = norm(self.input_layernorm, hidden)
        update = self._drop(self.self_attn(normed, context, norm))
        norm = Recomputed(self.selective)
        if self.selective:  # the sum is kept and the norm is not, so they are computed separately
            hidden = hidden + update
            normed = norm(self.post_attention_layernorm, hidden)
        else:
            normed, hidden = self.post_attention_layernorm.after_adding(update, hidden)
        return hidden + self._drop(self.mlp(normed, norm))

    def _drop(self, update: torch.Tensor) -> torch.Tensor:
        if not (self.dropout and self.training):
            return update
        # With sequence parallelism ranks hold different tokens and need different masks.
        split = self.sequence_parallel
        with tensor_parallel_stream() if split else contextlib.nullcontext():
            return F.dropout(update, self.dropout)
