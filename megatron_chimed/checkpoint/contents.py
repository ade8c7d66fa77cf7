"""The contents of a checkpoint: the files of its folder, and the one function that writes them.

rank_00000.safetensors   tensors; one file per writing rank, or per shard of an import
index.json               where each shard of each global tensor is stored (`index`)
state.json               optimizer step, data position, ...; and the state of each rank (`codec`)
config.json              the resolved configuration
tokenizer/               files of the tokenizer
manifest.json            size and hash of every other file, written last (`manifest`)
"""

import dataclasses
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import megatron_chimed
from megatron_chimed import files
from megatron_chimed.checkpoint import manifest as manifests
from megatron_chimed.checkpoint.index import GlobalTensor, encode_index
from megatron_chimed.checkpoint.manifest import MANIFEST_NAME, FileRecord, Manifest

INDEX_NAME = "index.json"
STATE_NAME = "state.json"
CONFIG_NAME = "config.json"
TOKENIZER_FOLDER = "tokenizer"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointContents:
    """Everything in a checkpoint but the files of its tensors."""

    iteration: int
    """Optimizer steps done; 0 for imported weights."""
    run_id: str
    """The run that writes it."""
    layout: Mapping[str, Any]
    """The parallel layout that writes it; empty for imported weights."""
    tensors: Mapping[str, GlobalTensor]
    """Every tensor, and where its shards are stored."""
    state: Any
    """State of the run, as `codec` encodes it."""
    rank_states: Sequence[Any]
    """State of each rank, as `codec` encodes it."""
    config: Mapping[str, Any]
    """The resolved configuration; its section `model` describes the architecture."""
    tokenizer: Mapping[str, bytes]
    """Content of the tokenizer's files by name."""


def write_contents(
    folder: Path, contents: CheckpointContents, tensor_files: Mapping[str, FileRecord]
) -> None:
    """Completes a checkpoint whose tensors are written: all other files, the manifest last.

    Args:
        folder: The folder of the checkpoint.
        contents: What the files hold.
        tensor_files: Record of each file of tensors in `folder`.

    Raises:
        CheckpointError: A file of tensors is missing or has another size.
    """
    small_files = {
        INDEX_NAME: _json(encode_index(contents.tensors)),
        STATE_NAME: _json({"state": contents.state, "rank_states": [*contents.rank_states]}),
        CONFIG_NAME: _json(contents.config),
    }
    for name, content in contents.tokenizer.items():
        small_files[f"{TOKENIZER_FOLDER}/{name}"] = content
    records = dict(tensor_files)
    for name, content in small_files.items():
        records[name] = write_file(folder / name, content)
    for name, record in records.items():
        manifests.check_size(folder, name, record)
    manifest = Manifest(
        iteration=contents.iteration,
        run_id=contents.run_id,
        layout=contents.layout,
        versions={
            "megatron_chimed": megatron_chimed.__version__,
            "megatron-core": importlib.metadata.version("megatron-core"),
            "torch": importlib.metadata.version("torch"),
            "python": platform.python_version(),
        },
        files=records,
    )
    write_file(folder / MANIFEST_NAME, manifests.encode_manifest(manifest))
    for directory, _, _ in os.walk(folder):
        files.fsync_directory(directory)


def write_file(path: Path, content: bytes) -> FileRecord:
    """Writes a new small file, synced, and gives its record."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "xb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    return FileRecord(size=len(content), sha256=files.sha256_file(path))


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode() + b"\n"
