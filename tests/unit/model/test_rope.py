"""Rotary embedding against transformers', with and without linear scaling, at any positions."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from megatron_chimed.config.model import ModelConfig
from megatron_chimed.kernels import rope
from megatron_chimed.model.rope import RotaryEmbedding

HEADS, HEAD_DIM = 4, 16


def reference(theta, scaling_factor):
    rope = {"rope_type": "default", "rope_theta": theta}
    if scaling_factor != 1.0:
        rope = {"rope_type": "linear", "factor": scaling_factor, "rope_theta": theta}
    config = LlamaConfig(
        hidden_size=HEADS * HEAD_DIM,
        num_attention_heads=HEADS,
        max_position_embeddings=4096,
        rope_parameters=rope,
    )
    return LlamaRotaryEmbedding(config)


def embedding(head_dim=HEAD_DIM, **changes):
    """Ours, for a model with heads of this width."""
    return RotaryEmbedding(ModelConfig(kv_channels=head_dim, **changes))


def turn(x, cos, sin):
    """One tensor [s, b, n, d] turned; the op takes two, with tokens in one dimension."""
    turned, same = rope(x.flatten(0, 1), x.flatten(0, 1), cos=cos, sin=sin)
    assert torch.equal(turned, same)
    return turned.unflatten(0, x.shape[:2])


def positions():
    """Three rows: from the start, from somewhere, and packed (starting again)."""
    return torch.stack([torch.arange(12), torch.arange(4084, 4096), torch.arange(12) % 5])


@pytest.mark.parametrize("theta", [10000.0, 500000.0])
@pytest.mark.parametrize("scaling_factor", [1.0, 2.0, 3.7])
def test_angles_are_those_of_transformers(theta, scaling_factor):
    ours = embedding(rope_theta=theta, rope_scaling_factor=scaling_factor)
    found = ours(positions())  # [s*b, d/2] each
    expected = reference(theta, scaling_factor)(torch.zeros(1), positions())  # [b, s, d] each
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == torch.float32
        assert mine.shape == (12 * 3, HEAD_DIM // 2)
        both_halves = mine.view(12, 3, -1).transpose(0, 1).repeat(1, 1, 2)
        torch.testing.assert_close(both_halves, theirs, rtol=0, atol=1e-6)


SCALINGS = {
    "llama3": (
        {"rope_low_frequency_factor": 1.0, "rope_high_frequency_factor": 4.0},
        {"low_freq_factor": 1.0, "high_freq_factor": 4.0},
    ),
    "llama3, other factors": (
        {"rope_low_frequency_factor": 2.0, "rope_high_frequency_factor": 9.0},
        {"low_freq_factor": 2.0, "high_freq_factor": 9.0},
    ),
    "yarn": ({}, {}),
    "yarn, other betas": (
        {"rope_beta_fast": 20.0, "rope_beta_slow": 0.5},
        {"beta_fast": 20.0, "beta_slow": 0.5},
    ),
}


@pytest.mark.parametrize("name", SCALINGS)
@pytest.mark.parametrize(("theta", "head_dim"), [(10000.0, 16), (500000.0, 64), (1e6, 128)])
def test_longer_contexts_are_those_of_transformers(name, theta, head_dim):
    ours, theirs = SCALINGS[name]
    kind = name.partition(",")[0]
    config = LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        max_position_embeddings=4096,
        rope_parameters={
            "rope_type": kind,
            "factor": 8.0,
            "rope_theta": theta,
            "original_max_position_embeddings": 512,
            **theirs,
        },
    )
    found = embedding(
        head_dim,
        rope_theta=theta,
        rope_scaling=kind,
        rope_scaling_factor=8.0,
        rope_original_max_positions=512,
        **ours,
    )(positions())
    expected = LlamaRotaryEmbedding(config)(torch.zeros(1), positions())
    plain = embedding(head_dim, rope_theta=theta)(positions())
    for mine, theirs_, unscaled in zip(found, expected, plain, strict=True):
        both_halves = mine.view(12, 3, -1).transpose(0, 1).repeat(1, 1, 2)
        torch.testing.assert_close(both_halves, theirs_, rtol=0, atol=5e-4)  # at position 4,095
        torch.testing.assert_close(both_halves[0], theirs_[0], rtol=0, atol=2e-6)
        assert not torch.allclose(mine, unscaled, atol=1e-2)


def test_scaling_divides_positions():
    plain, scaled = embedding(), embedding(rope_scaling_factor=4.0)
    where = torch.arange(0, 64, 4)[None]
    for a, b in zip(scaled(where), plain(where // 4), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_turning_is_that_of_transformers(dtype):
    """In half types theirs rounds the angles too; the truth is theirs in fp32, rounded once."""
    query, key = torch.randn(2, 12, 3, HEADS, HEAD_DIM, generator=torch.Generator().manual_seed(1))
    query, key = query.to(dtype), key.to(dtype)
    cos, sin = embedding()(positions())
    heads_first = [x.float().permute(1, 2, 0, 3) for x in (query, key)]  # [b, n, s, d]
    expected = apply_rotary_pos_emb(*heads_first, *reference(1e4, 1.0)(torch.zeros(1), positions()))
    for x, theirs in zip((query, key), expected, strict=True):
        turned = turn(x, cos, sin)
        assert turned.dtype == dtype
        tolerance = {"rtol": 1e-6, "atol": 2e-6} if dtype == torch.float32 else {}
        torch.testing.assert_close(turned.permute(1, 2, 0, 3), theirs.to(dtype), **tolerance)


def test_scores_depend_on_the_distance_alone():
    """What the embedding is for; and a vector keeps its length."""
    angles = embedding()
    generator = torch.Generator().manual_seed(2)
    query, key = torch.randn(2, 1, 1, 1, HEAD_DIM, generator=generator)

    def turned(x, position):
        return turn(x, *angles(torch.tensor([[position]]))).flatten().double()

    scores = [(turned(query, p + 7) @ turned(key, p)).item() for p in (0, 3, 50)]
    assert scores == pytest.approx([scores[0]] * 3, rel=1e-4)
    assert (turned(query, 9) @ turned(key, 0)).item() != pytest.approx(scores[0], rel=1e-3)
    assert turned(query, 33).norm().item() == pytest.approx(query.norm().item(), rel=1e-6)


def test_gradient_of_turning():
    x = torch.randn(3, 2, 2, 6, dtype=torch.float32, requires_grad=True)
    cos, sin = embedding(6)(torch.arange(6).reshape(2, 3))
    turned = turn(x, cos, sin)
    turned.sum().backward()
    # A rotation's transpose turns back.
    back = turn(torch.ones_like(x), cos, -sin)
    torch.testing.assert_close(x.grad, back, rtol=1e-5, atol=1e-6)
