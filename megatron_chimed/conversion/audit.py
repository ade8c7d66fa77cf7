"""What every conversion does: list what is not finite, prove what was written, report."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from megatron_chimed.checkpoint.safetensors_io import TensorSpec
from megatron_chimed.errors import CheckpointError, DataError

ReadTensor = Callable[[str], torch.Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conversion:
    """What a conversion did. It exists only if every tensor was found bit-equal on reading back."""

    output: Path
    """The committed folder."""
    num_tensors: int
    num_parameters: int
    size: int
    """Bytes of all tensors."""
    notes: tuple[str, ...]
    """What a careful reader would want to know: names left out, tensors made, no tokenizer."""


def describe(output: Path, specs: Mapping[str, TensorSpec], notes: Sequence[str]) -> Conversion:
    """The report on a folder that holds these tensors."""
    return Conversion(
        output=output,
        num_tensors=len(specs),
        num_parameters=sum(spec.size // spec.dtype.itemsize for spec in specs.values()),
        size=sum(spec.size for spec in specs.values()),
        notes=tuple(notes),
    )


def noting_infinite(read: ReadTensor, infinite: list[str]) -> ReadTensor:
    """`read` that notes the names of tensors with NaN or infinity, so that all can be listed."""

    def read_checked(key: str) -> torch.Tensor:
        tensor = read(key)
        # In pieces: the mask of a whole embedding would be hundreds of megabytes.
        if not all(piece.isfinite().all() for piece in tensor.flatten().split(1 << 20)):
            infinite.append(key)
        return tensor

    return read_checked


def refuse_infinite(infinite: Sequence[str]) -> None:
    """Stops an export that noted tensors with NaN or infinity.

    Raises:
        DataError: It did.
    """
    if infinite:
        raise DataError(
            f"{len(infinite)} tensors are not finite in the wanted dtype: {', '.join(infinite)}. "
            "Export to bfloat16 or float32, or look for the step that spoiled them."
        )


def compare(specs: Mapping[str, TensorSpec], expected: ReadTensor, found: ReadTensor) -> None:
    """Reads back everything that was written.

    Raises:
        CheckpointError: A tensor is not bit-equal to its source.
    """
    different = [key for key in specs if not same_bits(expected(key), found(key))]
    if different:
        raise CheckpointError(
            f"{len(different)} tensors differ from their source after writing: "
            f"{', '.join(different)}. Nothing was kept; check the disk and memory, and try again."
        )


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors have one type, one shape, and the same bits."""
    return (
        first.dtype is second.dtype
        and first.shape == second.shape
        and torch.equal(first.view(torch.uint8), second.view(torch.uint8))
    )


def write_json(path: Path, value: Any) -> None:
    """Writes a file for people and for transformers to read."""
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
