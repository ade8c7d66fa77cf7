"""The mean of several checkpoints of one run, as a checkpoint of weights.

One tensor at a time, at any layout: peak memory is the largest tensor in float64 plus a constant.
Source: Izmailov et al., SWA (arXiv 1803.05407); for the last checkpoints of a pre-training, LLaMA 3
(arXiv 2407.21783), section 3.4.3.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from megatron_chimed.checkpoint import commit
from megatron_chimed.checkpoint.contents import CheckpointContents, write_contents
from megatron_chimed.checkpoint.index import (
    MASTER_PREFIX,
    MOMENT_PREFIXES,
    GlobalTensor,
    StoredShard,
    shard_file,
    shard_name,
)
from megatron_chimed.checkpoint.load import stored_model_config
from megatron_chimed.checkpoint.reader import CheckpointReader, open_checkpoint
from megatron_chimed.checkpoint.safetensors_io import TensorSpec, write_safetensors
from megatron_chimed.config.model import architecture_differences
from megatron_chimed.conversion.audit import Conversion, compare, describe, noting_infinite
from megatron_chimed.conversion.hf_generation import SECTION
from megatron_chimed.data.templates import STORED_KEY
from megatron_chimed.disk_space import require_space
from megatron_chimed.engine.agreement import Agreement
from megatron_chimed.errors import CheckpointError, ConfigError
from megatron_chimed.model.lora import is_adapter

RUN_ID = "average"
SAME_KEYS = (STORED_KEY, SECTION)
"""Sections of the configuration that must be equal."""
KEPT_KEYS = ("model", *SAME_KEYS)
"""Sections that the mean keeps, those of the last checkpoint."""


def last_checkpoints(run: str | os.PathLike, count: int) -> list[Path]:
    """The newest checkpoints of a run or of a folder of checkpoints, oldest first.

    Raises:
        CheckpointError: There are fewer.
    """
    root = Path(run)
    root = root / "checkpoints" if (root / "checkpoints").is_dir() else root
    found = commit.committed(root)[:count]
    if len(found) < count:
        raise CheckpointError(
            f"{root} has {len(found)} checkpoints, --last asks for {count}. Lower it, or keep more "
            "with checkpoint.keep."
        )
    return found[::-1]


def average_checkpoints(
    paths: Sequence[str | os.PathLike], output: str | os.PathLike
) -> Conversion:
    """Writes the mean of the weights as the committed checkpoint `output/iter_0000000`.

    Of a run in 16 bits the fp32 master weights are averaged. Sums are in float64, each mean is
    rounded once to the dtype of the weight, and everything is read back and compared.

    Args:
        paths: Two or more checkpoints of the same model, tokenizer and template.
        output: A folder of checkpoints.

    Raises:
        CheckpointError: A checkpoint is damaged, or differs from the first in model, tokenizer,
            template or tensors, or holds adapters.
        ConfigError: There are fewer than two, one is given twice, or the output is beside one.
        OutputError: The output exists or cannot be written.
    """
    if len(paths) < 2:
        raise ConfigError(f"there is nothing to average in {len(paths)} checkpoint: give two.")
    readers = [open_checkpoint(path, strict=True) for path in paths]
    _check_folders([reader.directory.resolve() for reader in readers], Path(output).resolve())
    specs = _weights(readers[0])
    for reader in readers[1:]:
        _check_same(readers[0], reader, specs)

    def mean(key: str) -> torch.Tensor:
        total = torch.zeros(specs[key].shape, dtype=torch.float64)
        for reader in readers:
            master = MASTER_PREFIX + key
            total += reader.read(master if master in reader.tensors else key)
        return (total / len(readers)).to(specs[key].dtype)

    require_space(output, sum(spec.size for spec in specs.values()), "the mean")
    agreement = Agreement()
    with commit.staged(output, 0, run_id=RUN_ID, agreement=agreement) as staged:
        infinite: list[str] = []
        read = noting_infinite(mean, infinite)
        tensors, records = {}, {}
        for index, (key, spec) in enumerate(specs.items()):
            start, file = (0,) * len(spec.shape), shard_file(index)
            shard = StoredShard(file, shard_name(key, start), start, spec.shape)
            tensors[key] = GlobalTensor(spec.dtype, spec.shape, (shard,))
            in_file = {shard.name: spec}
            records[file] = write_safetensors(staged / file, in_file, lambda _, key=key: read(key))
        if infinite:
            raise CheckpointError(f"the mean of {', '.join(infinite)} is not finite.")
        write_contents(staged, _contents(readers, tensors), records)
        compare(specs, mean, CheckpointReader(staged).read)
    return describe(Path(output, commit.iteration_name(0)), specs, [])


def _check_folders(folders: Sequence[Path], output: Path) -> None:
    for folder in folders:
        if folders.count(folder) > 1:
            raise ConfigError(f"{folder} is given twice, and would count twice. Give it once.")
        if folder.parent == output:
            raise ConfigError(
                f"--output {output} holds the checkpoints themselves: the run would take the mean "
                "for its oldest and remove it. Give another folder."
            )


def _weights(reader: CheckpointReader) -> dict[str, TensorSpec]:
    if any(map(is_adapter, reader.tensors)):
        raise CheckpointError(
            f"{reader.directory} holds adapters, whose mean is not that of the matrices they "
            "change. Export each with export-hf, which merges them."
        )
    state = (*MOMENT_PREFIXES, MASTER_PREFIX)
    return {
        key: TensorSpec(tensor.dtype, tensor.shape)
        for key, tensor in reader.tensors.items()
        if not key.startswith(state)
    }


def _check_same(
    first: CheckpointReader, other: CheckpointReader, specs: Mapping[str, TensorSpec]
) -> None:
    where = f"{other.directory} and {first.directory} are not of one model"
    models = [dataclasses.asdict(stored_model_config(reader)) for reader in (other, first)]
    if different := architecture_differences(*models):
        raise CheckpointError(f"{where}: {'; '.join(different)}. Average one run's.")
    for key in SAME_KEYS:
        if other.config.get(key) != first.config.get(key):
            raise CheckpointError(f"{where}: their section {key!r} differs. Average one run's.")
    if _identity(other) != _identity(first):
        raise CheckpointError(f"{where}: their tokenizers differ. Average one run's.")
    found = _weights(other)
    different = [key for key in {**specs, **found} if specs.get(key) != found.get(key)]
    if different:
        raise CheckpointError(
            f"{where}: {different[0]} is {found.get(different[0])} and {specs.get(different[0])}, "
            f"{len(different)} tensors differ. Average one run's."
        )


def _identity(reader: CheckpointReader) -> Any:
    return reader.state.get("tokenizer_identity")


def _contents(
    readers: Sequence[CheckpointReader], tensors: Mapping[str, GlobalTensor]
) -> CheckpointContents:
    last = readers[-1]
    state: dict[str, Any] = {"averaged": [reader.iteration for reader in readers]}
    tokenizer: dict[str, bytes] = {}
    if last.tokenizer_folder is not None:
        state["tokenizer_identity"] = _identity(last)
        tokenizer = {path.name: path.read_bytes() for path in last.tokenizer_folder.iterdir()}
    return CheckpointContents(
        iteration=0,
        run_id=RUN_ID,
        layout={},
        tensors=tensors,
        state=state,
        rank_states=(),
        config={key: last.config[key] for key in KEPT_KEYS if key in last.config},
        tokenizer=tokenizer,
    )
