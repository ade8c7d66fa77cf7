"""A checkpoint with adapters, read as the plain model that it is."""

import pytest
import torch

from megatron_chimed.checkpoint.adapters import merge_adapters, stored_lora_config
from megatron_chimed.checkpoint.reader import open_checkpoint
from megatron_chimed.errors import CheckpointError
from tests.unit.checkpoint.toy import save_toy, whole

LORA = {"rank": 3, "alpha": 6.0, "dropout": 0.1, "targets": ["q_proj"]}
Q = "model.layers.0.self_attn.q_proj"


def saved(folder, lora=LORA, dtype=torch.float32):
    """A matrix with its adapter, another without, and Adam's moments of an A."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        f"{Q}.weight": (8, 6),
        f"{Q}.lora_A.weight": (3, 6),
        f"{Q}.lora_B.weight": (8, 3),
        "model.norm.weight": (6,),
        f"exp_avg.{Q}.lora_A.weight": (3, 6),
    }
    tensors = {key: torch.randn(s, generator=generator).to(dtype) for key, s in shapes.items()}
    save_toy(
        folder,
        shards=[whole(key, tensor) for key, tensor in tensors.items()],
        config={"model": {}, "lora": lora},
    )
    return tensors, open_checkpoint(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_are_part_of_what_is_read(tmp_path, dtype):
    tensors, reader = saved(tmp_path, dtype=dtype)
    merged = merge_adapters(reader)
    assert set(merged.tensors) == {f"{Q}.weight", "model.norm.weight"}
    w, a, b = (tensors[f"{Q}.{name}weight"].double() for name in ("", "lora_A.", "lora_B."))
    expected = w + 2.0 * b @ a
    assert torch.equal(merged.read(f"{Q}.weight"), expected.to(dtype))
    assert torch.equal(merged.read("model.norm.weight"), tensors["model.norm.weight"])
    for rows, columns in ((slice(2, 7), slice(0, 6)), (slice(3, 4), slice(2, 5))):
        shard = torch.empty(expected[rows, columns].shape)
        merged.read_region(f"{Q}.weight", (rows.start, columns.start), shard)
        assert torch.equal(shard, expected[rows, columns].float())
    assert torch.equal(reader.read(f"{Q}.weight"), tensors[f"{Q}.weight"]), "unmerged as it was"


def test_a_checkpoint_without_adapters_is_read_as_it_is(tmp_path):
    save_toy(tmp_path)
    reader = open_checkpoint(tmp_path)
    assert merge_adapters(reader) is reader
    assert stored_lora_config(reader).rank == 0


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        (None, "holds adapters, but its config.json has no lora section"),
        ({"rank": 3, "alpha": 6.0}, "does not describe its adapters: 'targets'"),
        (LORA | {"alpha": -1.0}, "does not describe its adapters: --lora.alpha is -1"),
        (LORA | {"quantum": 1}, "does not describe its adapters: .*quantum"),
    ],
)
def test_adapters_without_their_settings_are_refused(tmp_path, lora, said):
    _, reader = saved(tmp_path, lora)
    with pytest.raises(CheckpointError, match=said):
        merge_adapters(reader)
