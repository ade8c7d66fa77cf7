"""A small state and one-process saves of it, for the tests of checkpoints."""

from pathlib import Path

import torch

from megatron_chimed.checkpoint.save import Snapshot, save_checkpoint
from megatron_chimed.engine import TensorShard
from megatron_chimed.engine.agreement import Agreement


def whole(key: str, tensor: torch.Tensor) -> TensorShard:
    """A tensor that lies on this rank as a whole."""
    shape = tuple(tensor.shape)
    return TensorShard(key=key, global_shape=shape, offset=(0,) * len(shape), tensor=tensor)


def toy_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "a.weight": torch.randn(6, 4, generator=generator),
        "b.weight": torch.randn(4, generator=generator).bfloat16(),
        "exp_avg.a.weight": torch.randn(6, 4, generator=generator),
    }


def toy_snapshot(iteration: int = 10, **changes) -> Snapshot:
    content = {
        "iteration": iteration,
        "shards": [whole(key, tensor) for key, tensor in toy_tensors().items()],
        "state": {"consumed_samples": 320, "scale": torch.tensor(65536.0), "betas": (0.9, 0.95)},
        "rank_state": {"rng": torch.arange(16, dtype=torch.uint8)},
        "config": {"model": {"hidden_size": 4}},
        "layout": {"tensor_parallel_size": 1},
        "tokenizer": {"tokenizer.model": b"pieces", "special.json": b"{}"},
    }
    return Snapshot(**(content | changes))


def save_toy(root: Path, iteration: int = 10, *, keep=0, protect=(), **changes) -> Path:
    snapshot = toy_snapshot(iteration, **changes)
    return save_checkpoint(
        root, snapshot, agreement=Agreement(), run_id="run", keep=keep, protect=protect
    )
