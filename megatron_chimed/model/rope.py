"""Rotary position embedding, in fp32 throughout (Ziya2)."""

import torch

from megatron_chimed.kernels import rope_angles


class RotaryEmbedding(torch.nn.Module):
    """Angles of RoPE.

    Args:
        head_dim: Width d of a head.
        theta: Base of the frequencies.
        scaling_factor: Linear scaling, which divides the positions.

    Source: Su et al., RoFormer (arXiv 2104.09864), eq. 15; Chen et al., Position Interpolation
    (arXiv 2306.15595) for the scaling.
    """

    def __init__(self, head_dim: int, *, theta: float, scaling_factor: float) -> None:
        super().__init__()
        self.head_dim, self.theta, self.scaling_factor = head_dim, theta, scaling_factor

    def forward(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions [b, s] -> cos, sin [s*b, d/2], fp32, one row for each token."""
        return rope_angles(
            positions.t().flatten(),
            self.head_dim,
            theta=self.theta,
            scaling_factor=self.scaling_factor,
        )
