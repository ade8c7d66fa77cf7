"""Rotary embedding against transformers', with and without linear scaling, at any positions."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

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
    ours = RotaryEmbedding(HEAD_DIM, theta=theta, scaling_factor=scaling_factor)
    found = ours(positions())  # [s*b, d/2] each
    expected = reference(theta, scaling_factor)(torch.zeros(1), positions())  # [b, s, d] each
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == torch.float32
        assert mine.shape == (12 * 3, HEAD_DIM // 2)
        both_halves = mine.view(12, 3, -1).transpose(0, 1).repeat(1, 1, 2)
        torch.testing.assert_close(both_halves, theirs, rtol=0, atol=1e-6)


def test_scaling_divides_positions():
    plain = RotaryEmbedding(HEAD_DIM, theta=1e4, scaling_factor=1.0)
    scaled = RotaryEmbedding(HEAD_DIM, theta=1e4, scaling_factor=4.0)
    where = torch.arange(0, 64, 4)[None]
    for a, b in zip(scaled(where), plain(where // 4), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_turning_is_that_of_transformers(dtype):
    """In half types theirs rounds the angles too; the truth is theirs in fp32, rounded once."""
    query, key = torch.randn(2, 12, 3, HEADS, HEAD_DIM, generator=torch.Generator().manual_seed(1))
    query, key = query.to(dtype), key.to(dtype)
    cos, sin = RotaryEmbedding(HEAD_DIM, theta=1e4, scaling_factor=1.0)(positions())
    heads_first = [x.float().permute(1, 2, 0, 3) for x in (query, key)]  # [b, n, s, d]
    expected = apply_rotary_pos_emb(*heads_first, *reference(1e4, 1.0)(torch.zeros(1), positions()))
    for x, theirs in zip((query, key), expected, strict=True):
        turned = turn(x, cos, sin)
        assert turned.dtype == dtype
        tolerance = {"rtol": 1e-6, "atol": 2e-6} if dtype == torch.float32 else {}
        torch.testing.assert_close(turned.permute(1, 2, 0, 3), theirs.to(dtype), **tolerance)


def test_scores_depend_on_the_distance_alone():
    """What the embedding is for; and a vector keeps its length."""
    angles = RotaryEmbedding(HEAD_DIM, theta=1e4, scaling_factor=1.0)
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
    cos, sin = RotaryEmbedding(6, theta=1e4, scaling_factor=1.0)(torch.arange(6).reshape(2, 3))
    turned = turn(x, cos, sin)
    turned.sum().backward()
    # A rotation's transpose turns back.
    back = turn(torch.ones_like(x), cos, -sin)
    torch.testing.assert_close(x.grad, back, rtol=1e-5, atol=1e-6)
