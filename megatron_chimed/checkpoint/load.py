"""Loading a checkpoint into whatever layout runs now, in place; no tensors are communicated.

Each rank reads the shards that it needs straight into its own memory, in its own dtype. Ranks of
one data-parallel group read the same weights; beyond about eight ranks only the page cache of a
host makes that cheap.
"""

import logging
from collections.abc import Mapping, Sequence

import torch

from megatron_chimed.checkpoint.index import MASTER_PREFIX, GlobalTensor
from megatron_chimed.checkpoint.reader import CheckpointReader
from megatron_chimed.config.model import ModelConfig
from megatron_chimed.engine import TensorShard
from megatron_chimed.engine.agreement import Agreement
from megatron_chimed.errors import CheckpointError, ConfigError

logger = logging.getLogger(__name__)


def load_checkpoint(
    reader: CheckpointReader, shards: Sequence[TensorShard], *, agreement: Agreement
) -> tuple[str, ...]:
    """Fills every shard from a checkpoint of any layout; every rank calls it.

    Precision may differ from the save. A master weight that was not stored (the weights were fp32)
    is read from its weight; a weight of another precision than stored is read from its master
    weight.

    Args:
        reader: From `open_checkpoint`.
        shards: The shards to fill, in place.
        agreement: The ranks that take part.

    Returns:
        The tensors of the checkpoint that no rank asked for, such as moments where only weights
        are loaded.

    Raises:
        CheckpointError: The checkpoint lacks tensors or has them in another shape: all are listed,
            and no memory was changed.
    """
    sources = [_source(shard, reader.tensors) for shard in shards]
    asked = agreement.on_all_ranks(lambda: _check(reader, shards, sources))
    agreement.on_all_ranks(lambda: _read(reader, shards, sources))
    return tuple(sorted(set(reader.tensors).difference(*asked)))


def stored_model_config(reader: CheckpointReader) -> ModelConfig:
    """The architecture of a checkpoint.

    Raises:
        CheckpointError: Its config has no model section, or one of another version.
    """
    try:
        model = ModelConfig(**reader.config["model"])
        if model.vocab_size is None:
            raise KeyError("vocab_size")
        return model
    except (KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(
            f"{reader.directory / 'config.json'} does not describe a model: {error}. Was it "
            "written by another version?"
        ) from error


def _source(shard: TensorShard, stored: Mapping[str, GlobalTensor]) -> str:
    """The stored key that a shard is read from."""
    key = shard.key
    if key.startswith(MASTER_PREFIX):
        return key if key in stored else key.removeprefix(MASTER_PREFIX)
    master = MASTER_PREFIX + key
    if master in stored and key in stored and stored[key].dtype is not shard.tensor.dtype:
        return master
    return key


def _check(
    reader: CheckpointReader, shards: Sequence[TensorShard], sources: Sequence[str]
) -> list[str]:
    """Raises if anything does not fit; returns the keys that will be read."""
    missing, reshaped = set(), set()
    for shard, source in zip(shards, sources, strict=True):
        if source not in reader.tensors:
            missing.add(shard.key)
        elif reader.tensors[source].shape != shard.global_shape:
            reshaped.add(f"{shard.key} is {reader.tensors[source].shape}, not {shard.global_shape}")
    problems = []
    if missing:
        problems.append(f"{len(missing)} tensors are not in it: {', '.join(sorted(missing))}")
    if reshaped:
        problems.append(f"{len(reshaped)} have another shape: {'; '.join(sorted(reshaped))}")
    if problems:
        raise CheckpointError(
            f"{reader.directory} does not fit this model. {'. '.join(problems)}. Compare the model "
            "section of the config with the checkpoint's config.json."
        )
    return sorted(set(sources))


def _read(reader: CheckpointReader, shards: Sequence[TensorShard], sources: Sequence[str]) -> None:
    converted: dict[tuple[torch.dtype, torch.dtype], list[str]] = {}
    for shard, source in zip(shards, sources, strict=True):
        reader.read_region(source, shard.offset, shard.tensor)
        dtypes = (reader.tensors[source].dtype, shard.tensor.dtype)
        if source != shard.key or dtypes[0] is not dtypes[1]:
            converted.setdefault(dtypes, []).append(f"{shard.key} from {source}")
    for (stored, wanted), names in converted.items():
        logger.info("%d shards read from %s as %s, e.g. %s", len(names), stored, wanted, names[0])
