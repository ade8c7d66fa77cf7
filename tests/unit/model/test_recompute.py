"""Recomputing activations changes no gradient, with dropout neither, and keeps less."""

import pytest
import torch

from megatron_chimed import engine
from tests.unit.engine.world import one_rank, token_batch, token_losses, whole_model

DROPOUT = {"attention_dropout": 0.2, "hidden_dropout": 0.2}


def train_step(recompute, **changes):
    """Losses, gradients by name and the random streams afterwards."""
    tokens, positions, labels = token_batch()
    with one_rank() as ranks:
        model = whole_model(ranks, recompute=recompute, init_std=0.2, **changes)
        losses = token_losses(ranks, model(tokens, positions), labels)
        losses.sum().backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        return losses.detach(), gradients, engine.rng_state()


@pytest.mark.parametrize("changes", [{}, DROPOUT], ids=["plain", "dropout"])
@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_gradients_are_the_same(recompute, changes):
    """Bit for bit when whole layers run again. Selective recomputation adds the two gradients of
    the residual stream in the other order: rounding, which grows on the way down (6e-7 here)."""
    losses, gradients, streams = train_step("none", **changes)
    again = train_step(recompute, **changes)
    assert torch.equal(again[0], losses)
    assert again[1].keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert gradient.any(), name
        error = (again[1][name] - gradient).norm() / gradient.norm()
        assert error <= (0.0 if recompute == "full" else 3e-6), name
    assert again[2] == streams, "recomputation moved a random stream"


def test_dropout_draws():
    """Or the test above would compare nothing."""
    losses = {name: train_step("none", **{name: 0.2})[0] for name in DROPOUT}
    losses["none"] = train_step("none")[0]
    assert len({float(found.sum()) for found in losses.values()}) == 3


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_evaluation_drops_nothing_and_keeps_nothing(recompute):
    tokens, positions, _ = token_batch()
    kept = []
    with one_rank() as ranks, torch.no_grad():
        model = whole_model(ranks, recompute=recompute, **DROPOUT).eval()
        plain = whole_model(ranks)
        with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda tensor: tensor):
            assert torch.equal(model(tokens, positions), plain(tokens, positions))
    assert not kept
