"""Checkpoints over gloo ranks: resharding, shared errors."""

import errno
import logging
import os

import pytest
import torch

from megatron_chimed.checkpoint.reader import CheckpointReader
from megatron_chimed.errors import CheckpointError, OutputError

ROWS, PADDED_ROWS, WIDTH = 10, 16, 6


def global_tensors() -> dict[str, torch.Tensor]:
    """The toy model as a whole, without padding."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    return {
        "embed.weight": draw(ROWS, WIDTH),
        "q.weight": draw(8, WIDTH),
        "k.weight": draw(4, WIDTH),
        "out.weight": draw(WIDTH, 8),
        "norm.weight": draw(WIDTH).bfloat16(),
        "layers.weight": draw(3, 8),
    }


def toy_shards(rank, world_size, *, fill):
    """The toy model's memory on one rank, tensor-parallel over all ranks, and its shards.

    The embedding is padded, `q` and `k` share one memory, `out` is split by columns, `norm` is
    replicated, rows of `layers` are spread over ranks like pipeline stages.

    Returns:
        (memory by name, shards that are views of it)
    """
    from megatron_chimed.engine import TensorShard

    whole = global_tensors()
    padded = torch.zeros(PADDED_ROWS, WIDTH)
    padded[:ROWS] = whole["embed.weight"]

    def rows(tensor):
        return tensor.chunk(world_size)[rank]

    memory = {
        "embed": rows(padded).clone(),
        "qk": torch.cat([rows(whole["q.weight"]), rows(whole["k.weight"])]),
        "out": whole["out.weight"].chunk(world_size, dim=1)[rank].clone(),
        "norm": whole["norm.weight"].clone(),
        "layers": whole["layers.weight"][rank::world_size].clone(),
    }
    if not fill:
        memory = {name: torch.full_like(tensor, 7.0) for name, tensor in memory.items()}

    def shard(key, offset, view):
        return TensorShard(
            key=key, global_shape=tuple(whole[key].shape), offset=offset, tensor=view
        )

    first, size = rank * len(memory["embed"]), len(memory["embed"])
    true_rows = max(0, min(size, ROWS - first))
    q_rows, k_rows = 8 // world_size, 4 // world_size
    shards = [
        shard("q.weight", (rank * q_rows, 0), memory["qk"][:q_rows]),
        shard("k.weight", (rank * k_rows, 0), memory["qk"][q_rows:]),
        shard("out.weight", (0, rank * 8 // world_size), memory["out"]),
        shard("norm.weight", (0,), memory["norm"]),
    ]
    if true_rows:
        shards.append(shard("embed.weight", (first, 0), memory["embed"][:true_rows]))
    for number, row in zip(range(rank, 3, world_size), memory["layers"], strict=True):
        shards.append(shard("layers.weight", (number, 0), row.unsqueeze(0)))
    return memory, shards


def save_shards(root, iteration, shards, agreement):
    from megatron_chimed.checkpoint.save import Snapshot, save_checkpoint

    snapshot = Snapshot(
        iteration=iteration,
        shards=shards,
        state={"iteration": iteration},
        rank_state={"at": agreement.rank},
        config={},
        layout={"world_size": agreement.size},
    )
    return save_checkpoint(root, snapshot, agreement=agreement, run_id="toy")


def make_agreement():
    import datetime

    from megatron_chimed.engine.agreement import Agreement

    timeout = datetime.timedelta(seconds=20)
    return Agreement(torch.distributed.new_group(backend="gloo", timeout=timeout))


def load_and_save(rank, world_size, root, iteration):
    """Loads the newest checkpoint, if there is one, and saves what it got."""
    import megatron_chimed.engine  # noqa: F401  (prepares megatron-core)
    from megatron_chimed.checkpoint.load import load_checkpoint
    from megatron_chimed.checkpoint.reader import open_checkpoint

    agreement = make_agreement()
    memory, shards = toy_shards(rank, world_size, fill=iteration == 1)
    if iteration > 1:
        reader = open_checkpoint(root, agreement=agreement)
        assert load_checkpoint(reader, shards, agreement=agreement) == ()
        saved_by = reader.manifest.layout["world_size"]
        assert reader.rank_states == [{"at": number} for number in range(saved_by)]
    save_shards(root, iteration, shards, agreement)
    return memory


def test_resharding_keeps_every_bit(gloo_pool, tmp_path):
    for iteration, world_size in enumerate((2, 1, 4, 2, 2), start=1):
        restored = gloo_pool.run(load_and_save, world_size, str(tmp_path), iteration)
        reader = CheckpointReader(tmp_path / f"iter_{iteration:07d}")
        assert set(reader.tensors) == set(global_tensors())
        for key, tensor in global_tensors().items():
            assert reader.tensors[key].dtype is tensor.dtype
            assert torch.equal(reader.read(key), tensor), (iteration, key)
        if iteration > 1:
            embedding = torch.cat([memory["embed"] for memory in restored])
            assert torch.equal(embedding[:ROWS], global_tensors()["embed.weight"])
            assert (embedding[ROWS:] == 7.0).all(), "padding is not part of a checkpoint"
            fused, q_weight = restored[0]["qk"], global_tensors()["q.weight"]
            assert torch.equal(fused[: 8 // world_size], q_weight[: 8 // world_size])


def save_replicas(rank, world_size, root):
    from megatron_chimed.checkpoint.save import Snapshot, save_checkpoint
    from megatron_chimed.engine import TensorShard

    shards = [
        TensorShard(key=f"w{i}", global_shape=(64,), offset=(0,), tensor=torch.full((64,), i * 1.0))
        for i in range(8)
    ]
    snapshot = Snapshot(iteration=1, shards=shards, state={}, config={})
    save_checkpoint(root, snapshot, agreement=make_agreement(), run_id="toy")


def test_replicas_are_written_once_and_shared_out(gloo_pool, tmp_path):
    gloo_pool.run(save_replicas, 2, str(tmp_path))
    reader = CheckpointReader(tmp_path / "iter_0000001")
    files = [tensor.shards[0].file for tensor in reader.tensors.values()]
    assert all(len(tensor.shards) == 1 for tensor in reader.tensors.values())
    assert sorted(files) == ["rank_00000.safetensors"] * 4 + ["rank_00001.safetensors"] * 4


def save_with_a_full_disk(rank, world_size, root, failing_rank):
    from unittest import mock

    from megatron_chimed.checkpoint import save

    agreement = make_agreement()
    _, shards = toy_shards(rank, world_size, fill=True)

    def full(path, *args, **kwargs):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    writer = full if rank == failing_rank else save.write_safetensors
    with mock.patch.object(save, "write_safetensors", writer):
        try:
            save_shards(root, 1, shards, agreement)
            message = "saved"
        except OutputError as error:
            message = str(error)
    left = sorted(os.listdir(root))
    save_shards(root, 2, shards, agreement)
    return message, left


@pytest.mark.parametrize("failing_rank", [0, 1])
def test_one_ranks_full_disk_is_every_ranks_error(gloo_pool, tmp_path, failing_rank):
    first, second = gloo_pool.run(save_with_a_full_disk, 2, str(tmp_path), failing_rank)
    assert first == second
    message, left = first
    assert f"rank {failing_rank}: {tmp_path} has no room for the checkpoint of step 1" in message
    assert left == [], "no rank goes on before the rest is removed"
    assert CheckpointReader(tmp_path / "iter_0000002").iteration == 2


def save_contradiction(rank, world_size, root, what):
    from megatron_chimed.checkpoint.save import Snapshot, save_checkpoint
    from megatron_chimed.engine import TensorShard

    offset = {"overlap": rank, "hole": 3 * rank, "shape": 2 * rank}[what]
    held = TensorShard(
        key="w",
        global_shape=(4 + rank if what == "shape" else 4,),
        offset=(offset,),
        tensor=torch.zeros(2 - (what == "hole") * rank),
    )
    snapshot = Snapshot(iteration=1, shards=[held], state={}, config={})
    try:
        save_checkpoint(root, snapshot, agreement=make_agreement(), run_id="toy")
    except CheckpointError as error:
        return str(error)
    return "saved"


@pytest.mark.parametrize(
    ("what", "message"),
    [("overlap", "overlap"), ("hole", "hold 3 of 4"), ("shape", "ranks describe it differently")],
)
def test_ranks_that_contradict_each_other_write_nothing(gloo_pool, tmp_path, what, message):
    first, second = gloo_pool.run(save_contradiction, 2, str(tmp_path), what)
    assert first == second
    assert message in first
    assert os.listdir(tmp_path) == []


def open_newest(rank, world_size, root, strict):
    from megatron_chimed.checkpoint.reader import open_checkpoint

    logging.disable(logging.CRITICAL)
    try:
        return open_checkpoint(root, agreement=make_agreement(), strict=strict).iteration
    except CheckpointError as error:
        return str(error)
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", ["rank_00001.safetensors", "index.json"])
def test_all_ranks_fall_back_to_the_same_checkpoint(gloo_pool, tmp_path, name):
    for iteration in (1, 2):
        gloo_pool.run(load_and_save, 2, str(tmp_path), iteration)
    damaged = tmp_path / "iter_0000002" / name
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    assert gloo_pool.run(open_newest, 2, str(tmp_path), False) == [1, 1]
    first, second = gloo_pool.run(open_newest, 2, str(tmp_path), True)
    assert first == second
    assert name in first
