"""A checkpoint with LoRA adapters: read as the plain model that it is."""

from collections.abc import Mapping

import torch

from megatron_chimed.checkpoint.index import GlobalTensor
from megatron_chimed.checkpoint.reader import CheckpointReader
from megatron_chimed.config.lora import LoraConfig
from megatron_chimed.errors import CheckpointError, ConfigError
from megatron_chimed.model.lora import A_SUFFIX, B_SUFFIX, is_adapter


def stored_lora_config(reader: CheckpointReader) -> LoraConfig:
    """What a checkpoint says of its adapters; without a rank where it has none.

    Raises:
        CheckpointError: Its config has a section that this version cannot read.
    """
    section = dict(reader.config.get("lora") or {})
    try:
        return LoraConfig(**section | {"targets": tuple(section["targets"])} if section else {})
    except (ConfigError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{reader.directory / 'config.json'} does not describe its adapters: {error}. Was it "
            "written by another version?"
        ) from error


def merge_adapters(reader: CheckpointReader) -> CheckpointReader:
    """The same checkpoint without adapters: they are part of the matrices that are read.

    Raises:
        CheckpointError: The config does not describe the adapters.
    """
    return MergedReader(reader) if any(map(is_adapter, reader.tensors)) else reader


class MergedReader(CheckpointReader):
    """Adds (alpha / rank) B A to every box of a matrix that is read.

    In fp64, rounded once to what was asked for: a box is the same, whatever it is cut from. Memory:
    the box in fp64.

    Args:
        reader: Of a checkpoint with adapters, proven.
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

    def read_box(self, key: str, offset: tuple[int, ...], out: torch.Tensor) -> None:
        """Fills `out` with the merged box of its shape at `offset`."""
        matrix = key.removesuffix(".weight")
        if matrix + B_SUFFIX not in self.adapters.tensors:
            super().read_box(key, offset, out)
            return
        rank = self.lora.rank
        wide, up, down = (
            torch.empty(shape, dtype=torch.float64)
            for shape in (out.shape, (out.shape[0], rank), (rank, out.shape[1]))
        )
        super().read_box(key, offset, wide)
        self.adapters.read_box(matrix + B_SUFFIX, (offset[0], 0), up)
        self.adapters.read_box(matrix + A_SUFFIX, (0, offset[1]), down)
        with torch.no_grad():
            out.copy_(wide.addmm_(up, down, alpha=self.lora.scale))
