"""Loading a checkpoint into whatever layout runs now, in place; no tensors are communicated.

Each rank reads the boxes that it needs straight into its own memory, in its own dtype. Ranks of one
data-parallel group read the same weights; beyond about eight of them the page cache of a node is
what makes that cheap.
"""

import logging
from collections.abc import Mapping, Sequence

import torch

from megatron_chimed.checkpoint.index import GlobalTensor
from megatron_chimed.checkpoint.reader import CheckpointReader
from megatron_chimed.config.model import ModelConfig
from megatron_chimed.engine import TensorSlice
from megatron_chimed.engine.agreement import Agreement
from megatron_chimed.errors import CheckpointError, ConfigError

logger = logging.getLogger(__name__)

MASTER_PREFIX = "master."


def load_checkpoint(
    reader: CheckpointReader, slices: Sequence[TensorSlice], *, agreement: Agreement
) -> tuple[str, ...]:
    """Fills every box from a checkpoint of any layout; every rank calls it.

    Precision may differ from the save. A main parameter that was not stored (the weights were fp32)
    comes from its weight; a weight wanted in another precision comes from its main parameter.

    Args:
        reader: From `open_checkpoint`.
        slices: The boxes to fill, in place.
        agreement: The ranks that take part.

    Returns:
        The tensors of the checkpoint that no rank asked for, such as moments where only weights
        are wanted.

    Raises:
        CheckpointError: Tensors that the checkpoint does not have, or has in another shape: all are
            listed, and no memory was changed.
    """
    sources = [_source(held, reader.tensors) for held in slices]
    asked = agreement.on_all_ranks(lambda: _check(reader, slices, sources))
    agreement.on_all_ranks(lambda: _read(reader, slices, sources))
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


def _source(held: TensorSlice, stored: Mapping[str, GlobalTensor]) -> str:
    """The key on disk that a box is read from."""
    key = held.key
    if key.startswith(MASTER_PREFIX):
        return key if key in stored else key.removeprefix(MASTER_PREFIX)
    master = MASTER_PREFIX + key
    if master in stored and key in stored and stored[key].dtype is not held.tensor.dtype:
        return master
    return key


def _check(
    reader: CheckpointReader, slices: Sequence[TensorSlice], sources: Sequence[str]
) -> list[str]:
    """Raises for everything that does not fit; returns the keys that will be read."""
    missing, reshaped = set(), set()
    for held, source in zip(slices, sources, strict=True):
        if source not in reader.tensors:
            missing.add(held.key)
        elif reader.tensors[source].shape != held.global_shape:
            reshaped.add(f"{held.key} is {reader.tensors[source].shape}, not {held.global_shape}")
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


def _read(reader: CheckpointReader, slices: Sequence[TensorSlice], sources: Sequence[str]) -> None:
    converted: dict[tuple[torch.dtype, torch.dtype], list[str]] = {}
    for held, source in zip(slices, sources, strict=True):
        reader.read_box(source, held.offset, held.tensor)
        dtypes = (reader.tensors[source].dtype, held.tensor.dtype)
        if source != held.key or dtypes[0] is not dtypes[1]:
            converted.setdefault(dtypes, []).append(f"{held.key} from {source}")
    for (stored, wanted), names in converted.items():
        logger.info("%d boxes read from %s as %s, e.g. %s", len(names), stored, wanted, names[0])
