"""Safetensors files, streamed: one tensor in memory at a time, hashed while written.

The safetensors library writes a whole dict at once and gives no hash; its reader is as fast as this
one. Reads here map one tensor's bytes, copy, and unmap, so that the resident size of a process does
not grow with the files it has read.

Layout: u64 length, JSON header {name: {dtype, shape, data_offsets}}, data without gaps.
"""

import collections
import dataclasses
import hashlib
import json
import math
import mmap
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from megatron_chimed.checkpoint.manifest import FileRecord
from megatron_chimed.errors import CheckpointError
from megatron_chimed.files import HASH_CHUNK_BYTES, open_plain

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_HEADER_BYTES = 100_000_000
EXPORT_METADATA = {"format": "pt", "made_by": "megatron_chimed"}
"""In exported files: transformers requires the first, the second marks them as ours."""


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """Element type and shape of a tensor, without its data."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes of the data."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_safetensors(
    path: str | os.PathLike,
    specs: Mapping[str, TensorSpec],
    read: Callable[[str], torch.Tensor],
    *,
    metadata: Mapping[str, str] | None = None,
) -> FileRecord:
    """Writes a new file, one tensor at a time, and syncs it.

    Args:
        path: Must not exist.
        specs: What the file will hold; the header is written before the first tensor.
        read: Returns the tensor of a name, on any device; called once per name.
        metadata: The header's `__metadata__`.

    Returns:
        The file's size and SHA-256, of the bytes handed to the operating system.
    """
    # Wide elements first: every tensor then starts at a multiple of its element size.
    order = sorted(specs, key=lambda name: (-specs[name].dtype.itemsize, name))
    digest = hashlib.sha256()
    with open(path, "xb") as stream:
        header = _encode_header(order, specs, metadata)
        digest.update(header)
        stream.write(header)
        for name in order:
            for chunk in _chunks(name, specs[name], read(name)):
                digest.update(chunk)
                stream.write(chunk)
        stream.flush()
        os.fsync(stream.fileno())
        return FileRecord(size=stream.tell(), sha256=digest.hexdigest())


class SafetensorsFile:
    """One safetensors file with a fully checked header.

    Raises:
        CheckpointError: From the constructor, when the file is truncated, its header is malformed,
            or its tensors overlap, leave gaps or do not fill the file.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.specs: dict[str, TensorSpec] = {}
        self._starts: dict[str, int] = {}
        try:
            with open_plain(self.path) as stream:
                size = os.fstat(stream.fileno()).st_size
                length = int.from_bytes(stream.read(8), "little")
                if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                    raise self._damaged(f"header of {length} bytes in a file of {size}")
                header = stream.read(length)
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error.strerror}.") from error
        self._parse(header, data_bytes=size - 8 - length)

    def view(self, name: str) -> torch.Tensor:
        """The tensor as a view of the file: copy from it and drop it; never keep it."""
        spec, start = self.specs[name], self._starts[name]
        if spec.size == 0:
            return torch.empty(spec.shape, dtype=spec.dtype)
        lead = start % mmap.ALLOCATIONGRANULARITY
        with open(self.path, "rb") as stream:
            # A private mapping: torch wants writable memory, and the file must stay as it is.
            mapping = mmap.mmap(
                stream.fileno(), lead + spec.size, access=mmap.ACCESS_COPY, offset=start - lead
            )
        count = math.prod(spec.shape)
        flat = torch.frombuffer(mapping, dtype=spec.dtype, count=count, offset=lead)
        return flat.view(spec.shape)

    def read(self, name: str) -> torch.Tensor:
        """A copy of the tensor."""
        return self.view(name).clone()

    def _parse(self, header: bytes, data_bytes: int) -> None:
        try:
            table = json.loads(header, object_pairs_hook=unique_keys)
            table.pop("__metadata__", None)
            entries = [(*_parse_entry(entry), name) for name, entry in table.items()]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise self._damaged(f"malformed header: {error}") from error
        position = 0
        data_start = 8 + len(header)
        for start, stop, spec, name in sorted(entries, key=lambda entry: entry[:2]):
            if start != position or stop - start != spec.size:
                raise self._damaged(
                    f"tensor {name!r} is at bytes {start}..{stop}, expected {spec.size} bytes "
                    f"from {position} (overlap, gap or wrong size)"
                )
            self.specs[name] = spec
            self._starts[name] = data_start + start
            position = stop
        if position != data_bytes:
            raise self._damaged(f"tensors end at byte {position} of {data_bytes}")

    def _damaged(self, reason: str) -> CheckpointError:
        return CheckpointError(f"{self.path} is not a valid safetensors file: {reason}.")


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `json.loads(object_pairs_hook=...)`: otherwise the last of equal names would win.

    Raises:
        ValueError: A name occurs twice; the message says which.
    """
    counts = collections.Counter(name for name, _ in pairs)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise ValueError(f"{', '.join(twice)} occurs twice")
    return dict(pairs)


def _encode_header(
    order: list[str], specs: Mapping[str, TensorSpec], metadata: Mapping[str, str] | None
) -> bytes:
    table: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name in order:
        spec = specs[name]
        table[name] = {
            "dtype": DTYPE_NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [position, position + spec.size],
        }
        position += spec.size
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _chunks(name: str, spec: TensorSpec, tensor: torch.Tensor):
    found = TensorSpec(tensor.dtype, tuple(tensor.shape))
    assert found == spec, f"{name}: the header announces {spec}, the tensor is {found}"
    if spec.size == 0:
        return
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    data = flat.numpy().data
    for start in range(0, spec.size, HASH_CHUNK_BYTES):
        yield data[start : start + HASH_CHUNK_BYTES]


def _parse_entry(entry: dict[str, Any]) -> tuple[int, int, TensorSpec]:
    start, stop = entry["data_offsets"]
    numbers = [start, stop, *entry["shape"]]
    if any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError(f"offsets and shapes are whole numbers, not {numbers}")
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"element type {entry['dtype']!r} is not supported")
    return start, stop, TensorSpec(DTYPES[entry["dtype"]], tuple(entry["shape"]))


def are_exports(folder: Path) -> bool:
    """Whether a folder holds weights that this project exported, and no subfolders."""
    weights = sorted(folder.glob("*.safetensors"))
    return (
        bool(weights)
        and all(path.is_file() for path in folder.iterdir())
        and all(_is_export(path) for path in weights)
    )


def _is_export(path: Path) -> bool:
    start = json.dumps({"__metadata__": EXPORT_METADATA}, separators=(",", ":"))[:-1].encode()
    with open(path, "rb") as stream:
        stream.seek(8)
        return stream.read(len(start)) == start
