"""Rotary position embedding, in fp32 throughout (Ziya2)."""

import torch


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
        """Positions [b, s] -> cos, sin [s, b, 1, d], fp32, one for each token."""
        pairs = torch.arange(
            0, self.head_dim, 2, dtype=torch.int64, device=positions.device
        ).float()
        frequencies = 1.0 / (self.theta ** (pairs / self.head_dim)) / self.scaling_factor
        angles = positions.t().float().unsqueeze(-1) * frequencies  # [s, b, d/2]
        angles = torch.cat((angles, angles), dim=-1).unsqueeze(2)  # [s, b, 1, d]
        return angles.cos(), angles.sin()


def apply_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turns each pair (i, i + d/2) of every head by its angle: LLaMA's half-split convention.

    Args:
        x: Queries or keys [s, b, n, d], any float dtype.
        cos: [s, b, 1, d] fp32.
        sin: [s, b, 1, d] fp32.

    Returns:
        [s, b, n, d] in the dtype of `x`; the product is formed in fp32.
    """
    x32 = x.float()
    first, second = x32.chunk(2, dim=-1)
    return (x32 * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)
