"""Saving a run's state so that any layout can load it.

A rank passes the shards of global tensors in its memory; `placement` decides which rank writes
each. Nothing is gathered: a save needs host memory for one shard, and only where shards are on a
GPU.
"""

import dataclasses
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from megatron_chimed.checkpoint import codec, commit
from megatron_chimed.checkpoint.contents import CheckpointContents, write_contents
from megatron_chimed.checkpoint.index import shard_file, shard_name
from megatron_chimed.checkpoint.manifest import FileRecord
from megatron_chimed.checkpoint.placement import WritePlan, describe_shards, plan_writes
from megatron_chimed.checkpoint.reader import CheckpointReader, reference
from megatron_chimed.checkpoint.safetensors_io import TensorSpec, write_safetensors
from megatron_chimed.disk_space import naming_space
from megatron_chimed.engine import TensorShard
from megatron_chimed.engine.agreement import Agreement


@dataclasses.dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Everything that goes into one checkpoint.

    `shards` and `rank_state` differ from rank to rank; of the rest, rank 0's is written.
    """

    iteration: int
    """Optimizer steps done."""
    shards: Sequence[TensorShard]
    """Weights `<key>` under Hugging Face names, moments `exp_avg.<key>`, `exp_avg_sq.<key>`, and
    master weights `master.<key>` where weights are not fp32."""
    state: Mapping[str, Any]
    """Scheduler, loss scale, consumed samples, ...: types that `codec` supports."""
    rank_state: Any = None
    """What differs from rank to rank, such as the state of random generators."""
    config: Mapping[str, Any]
    """The resolved configuration; its section `model` describes the architecture."""
    layout: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The parallel layout: compared on loading, before `rank_state` is restored."""
    tokenizer: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    """Content of the tokenizer's files by name."""


def save_checkpoint(
    root: str | os.PathLike,
    snapshot: Snapshot,
    *,
    agreement: Agreement,
    run_id: str,
    keep: int = 0,
    protect: Collection[int] = (),
) -> Path:
    """Writes and commits `root/iter_N`; every rank calls it.

    Args:
        root: The folder of checkpoints, on a file system that all ranks share.
        snapshot: What to save; its tensors are read until the call returns.
        agreement: The ranks that take part.
        run_id: Part of the temporary folder's name and of the manifest; letters, digits, `_.-`.
        keep: How many checkpoints to keep: older ones are removed once the new one has been read
            back and verified. 0 keeps all. Two or more leave one to fall back to.
        protect: Iterations that are never removed, such as the best one so far.

    Returns:
        The committed folder.

    Raises:
        OutputError: The iteration exists, or a disk refuses; the same on all ranks, nothing is
            left behind.
        CheckpointError: State that cannot be stored, or ranks that contradict each other.
        ParallelError: A peer was lost.
    """
    plan = plan_writes(agreement.on_all_ranks(lambda: describe_shards(snapshot.shards)))
    needed = sum(tensor.size for tensor in plan.tensors.values())

    def write(folder: Path) -> dict[str, Any]:
        what = f"the checkpoint of step {snapshot.iteration}"
        with naming_space(root, needed, what, "and start the same command again"):
            return _write_own(folder, snapshot, plan, agreement.rank)

    with commit.staged(root, snapshot.iteration, run_id=run_id, agreement=agreement) as folder:
        written = agreement.on_all_ranks(lambda: write(folder))
        contents = _contents(snapshot, plan, written, run_id)
        records = {
            shard_file(rank): FileRecord(**answer["record"])
            for rank, answer in enumerate(written)
            if "record" in answer
        }
        agreement.on_rank_0(lambda: write_contents(folder, contents, records))
    final = Path(root, commit.iteration_name(snapshot.iteration))
    if keep and agreement.on_rank_0(lambda: len(commit.committed(root)) > keep):
        opened: list[CheckpointReader] = []
        agreement.on_all_ranks(lambda: opened.append(CheckpointReader(final)))
        opened[0].verify(agreement)
        agreement.on_rank_0(lambda: len(commit.prune(root, keep, run_id, protect)))
    return final


def _write_own(folder: Path, snapshot: Snapshot, plan: WritePlan, rank: int) -> dict[str, Any]:
    """Writes a rank's file; returns its record and the JSON part of the state."""
    file = shard_file(rank)
    tensors = {
        shard_name(shard.key, shard.offset): shard.tensor
        for shard in snapshot.shards
        if plan.writers.get((shard.key, shard.offset)) == rank
    }

    def store(tensor: torch.Tensor) -> str:
        name = f"state:{len(tensors)}"
        tensors[name] = tensor
        return reference(file, name)

    answer = {"rank_state": codec.encode(snapshot.rank_state, store, "rank_state")}
    if rank == 0:
        answer["state"] = codec.encode(dict(snapshot.state), store)
    if tensors:
        specs = {name: TensorSpec(t.dtype, tuple(t.shape)) for name, t in tensors.items()}
        record = write_safetensors(folder / file, specs, tensors.__getitem__)
        answer["record"] = dataclasses.asdict(record)
    return answer


def _contents(
    snapshot: Snapshot, plan: WritePlan, written: list[dict[str, Any]], run_id: str
) -> CheckpointContents:
    return CheckpointContents(
        iteration=snapshot.iteration,
        run_id=run_id,
        layout=snapshot.layout,
        tensors=plan.tensors,
        state=written[0]["state"],
        rank_states=[answer["rank_state"] for answer in written],
        config=snapshot.config,
        tokenizer=snapshot.tokenizer,
    )
