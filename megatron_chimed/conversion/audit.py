"""What every conversion does: list tensors that are not finite, verify what was written, report."""

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
    """Report on a conversion. It exists only if every tensor was bit-equal when read back."""

    output: Path
    """The committed folder."""
    num_tensors: int
    num_parameters: int
    size: int
    """Bytes of all tensors."""
    notes: tuple[str, ...]
    """Remarks, for example on names left out, tensors made, or a missing tokenizer."""


def describe(output: Path, specs: Mapping[str, TensorSpec], notes: Sequence[str]) -> Conversion:
    """The report on a folder with these tensors."""
    return Conversion(
        output=output,
        num_tensors=len(specs),
        num_parameters=sum(spec.size // spec.dtype.itemsize for spec in specs.values()),
        size=sum(spec.size for spec in specs.values()),
        notes=tuple(notes),
    )


def noting_infinite(read: ReadTensor, infinite: list[str]) -> ReadTensor:
    """`read` that also collects the names of tensors with NaN or infinity, to list them all."""

    def read_checked(key: str) -> torch.Tensor:
        tensor = read(key)
        # In chunks: the mask of a whole embedding would be hundreds of megabytes.
        if not all(chunk.isfinite().all() for chunk in tensor.flatten().split(1 << 20)):
            infinite.append(key)
        return tensor

    return read_checked


def refuse_infinite(infinite: Sequence[str]) -> None:
    """Raises DataError if an export found tensors with NaN or infinity."""
    if infinite:
        raise DataError(
            f"{len(infinite)} tensors are not finite in the requested dtype: "
            f"{', '.join(infinite)}. Export to bfloat16 or float32, or find the training "
            "step that produced them."
        )


def compare(specs: Mapping[str, TensorSpec], expected: ReadTensor, found: ReadTensor) -> None:
    """Compares everything that was written with its source.

    Raises:
        CheckpointError: A tensor is not bit-equal to its source.
    """
    different = [key for key in specs if not same_bits(expected(key), found(key))]
    if different:
        raise CheckpointError(
            f"{len(different)} tensors differ from their source after writing: "
            f"{', '.join(different)}. Nothing was kept. Check disk and memory, and try again."
        )


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors have the same dtype, shape and bits."""
    return (
        first.dtype is second.dtype
        and first.shape == second.shape
        and torch.equal(first.view(torch.uint8), second.view(torch.uint8))
    )


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file that is also readable for people."""
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
