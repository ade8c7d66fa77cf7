"""A checkpoint with LoRA adapters, read as a plain model: adapters merged into their matrices."""

from collections.abc import Mapping
from typing import Any

import torch

from megatron_chimed.checkpoint.index import GlobalTensor
from megatron_chimed.checkpoint.reader import CheckpointReader
from megatron_chimed.config.lora import LoraConfig
from megatron_chimed.errors import CheckpointError, ConfigError
from megatron_chimed.model.lora import A_SUFFIX, B_SUFFIX, is_adapter


def stored_lora_config(reader: CheckpointReader) -> LoraConfig:
    """The LoRA section of a checkpoint's configuration; rank 0 where it has none.

    Raises:
        CheckpointError: Its config has a section that this version cannot read.
    """
    section: dict[str, Any] = dict(reader.config.get("lora") or {})
    try:
        if section:
            section["targets"] = tuple(section["targets"])
        return LoraConfig(**section)
    except (ConfigError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{reader.directory / 'config.json'} does not describe its adapters: {error}. Was it "
            "written by another version?"
        ) from error


def merge_adapters(reader: CheckpointReader) -> CheckpointReader:
    """The same checkpoint without adapters, which are merged into the matrices that are read.

    Raises:
        CheckpointError: The config does not describe the adapters.
    """
    return MergedReader(reader) if any(map(is_adapter, reader.tensors)) else reader


class MergedReader(CheckpointReader):
    """Adds (alpha / rank) B A to every region of a matrix that is read.

    Computed in fp64 and rounded once to the dtype asked for, so that a value does not depend on the
    region it is read in. Memory: the region in fp64.

    Args:
        reader: Of a verified checkpoint with adapters.
    """

    def __init__(self, reader: CheckpointReader) -> None:
        super().__init__(reader.directory)
        self.adapters = reader
        self.lora = stored_lora_config(reader)
        if not self.lora.rank:
            raise CheckpointError(
                f"{reader.directory} holds adapters, but its config.json has no lora section."
            )
        self.tensors: Mapping[str, GlobalTensor] = {
            key: tensor for key, tensor in self.tensors.items() if not is_adapter(key)
        }

    def read_region(self, key: str, offset: tuple[int, ...], out: torch.Tensor) -> None:
        """Fills `out` with the merged region of its shape at `offset`."""
        matrix = key.removesuffix(".weight")
        if matrix + B_SUFFIX not in self.adapters.tensors:
            super().read_region(key, offset, out)
            return
        rank = self.lora.rank
        wide, up, down = (
            torch.empty(shape, dtype=torch.float64)
            for shape in (out.shape, (out.shape[0], rank), (rank, out.shape[1]))
        )
        super().read_region(key, offset, wide)
        self.adapters.read_region(matrix + B_SUFFIX, (offset[0], 0), up)
        self.adapters.read_region(matrix + A_SUFFIX, (0, offset[1]), down)
        with torch.no_grad():
            out.copy_(wide.addmm_(up, down, alpha=self.lora.scale))
