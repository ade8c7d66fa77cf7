"""Rotary position embedding, in fp32 throughout (Ziya2), with three ways to longer contexts."""

import math

import torch

from megatron_chimed.config.model import ModelConfig
from megatron_chimed.kernels import rope_frequencies


class RotaryEmbedding(torch.nn.Module):
    """Angles of RoPE.

    Args:
        config: Gives the width of a head, the base of the frequencies and their scaling.

    Source: Su et al., RoFormer (arXiv 2104.09864), eq. 15.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        is_yarn = config.rope_scaling == "yarn"
        # YaRN (arXiv 2309.00071), section 3.4: longer contexts need sharper attention.
        self.length = 0.1 * math.log(config.rope_scaling_factor) + 1.0 if is_yarn else 1.0

    def forward(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions [b, s] -> cos, sin [s*b, d/2], fp32, one row for each token."""
        frequencies = scaled_frequencies(self.config, positions.device)
        angles = positions.t().flatten().float().unsqueeze(-1) * frequencies
        if self.length == 1.0:
            return angles.cos(), angles.sin()
        return angles.cos() * self.length, angles.sin() * self.length


def scaled_frequencies(config: ModelConfig, device: torch.device | None = None) -> torch.Tensor:
    """Radians that each pair of a head turns per position: [d/2] fp32.

    `linear` divides all of them (Chen et al., arXiv 2306.15595). The others keep those that turn
    often over the positions of pre-training and divide those that hardly turn, with a ramp between:
    `llama3` over the turns themselves (Llama 3.1's reference code), `yarn` over the index of the
    pair (Peng et al., arXiv 2309.00071, section 3.2).
    """
    frequencies = rope_frequencies(config.head_dim, theta=config.rope_theta, device=device)
    factor, original = config.rope_scaling_factor, config.rope_original_max_positions
    if config.rope_scaling == "linear":
        return frequencies / factor
    assert original is not None, "the config checks it"
    if config.rope_scaling == "llama3":
        turns = original * frequencies / (2 * math.pi)
        low, high = config.rope_low_frequency_factor, config.rope_high_frequency_factor
        kept = ((turns - low) / (high - low)).clamp(0, 1)
    else:
        first = math.floor(_pair_of(config.rope_beta_fast, config, original))
        last = math.ceil(_pair_of(config.rope_beta_slow, config, original))
        first, last = max(first, 0), min(last, config.head_dim - 1)
        pairs = torch.arange(len(frequencies), dtype=torch.float32, device=device)
        kept = 1 - ((pairs - first) / max(last - first, 1e-3)).clamp(0, 1)
    return frequencies * kept + frequencies / factor * (1 - kept)


def _pair_of(turns: float, config: ModelConfig, positions: int) -> float:
    """The pair, as a real number, that turns so often over these positions."""
    ratio = positions / (turns * 2 * math.pi)
    return config.head_dim * math.log(ratio) / (2 * math.log(config.rope_theta))
