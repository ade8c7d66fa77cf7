"""The manifest: the file that makes a folder a checkpoint, with the hashes of its content.

Written last, it names every other file with size and SHA-256, and includes a SHA-256 of itself. A
folder without a valid manifest is not a checkpoint, whatever else it contains.
"""

import dataclasses
import errno
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from megatron_chimed import files
from megatron_chimed.errors import CheckpointError, UnsafeInputError

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileRecord:
    """Size and content hash of one file."""

    size: int
    """Bytes."""
    sha256: str
    """Hex digest of the content."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a committed checkpoint contains, and what wrote it."""

    iteration: int
    """Optimizer steps done when it was written; 0 for imported weights."""
    run_id: str
    """The run that wrote it."""
    layout: Mapping[str, Any]
    """The parallel layout that wrote it; information only, any layout can load it."""
    versions: Mapping[str, str]
    """Versions of the software that wrote it."""
    files: Mapping[str, FileRecord]
    """Every other file, by path relative to the folder."""


def encode_manifest(manifest: Manifest) -> bytes:
    """The only valid encoding of `manifest`."""
    body = {"version": FORMAT_VERSION, **dataclasses.asdict(manifest)}
    return _dump({**body, "sha256": hashlib.sha256(_dump(body)).hexdigest()})


def manifest_sha256(manifest: Manifest) -> str:
    """Identifies a checkpoint: the hash of its manifest's file, which has the hashes of all."""
    return hashlib.sha256(encode_manifest(manifest)).hexdigest()


def read_manifest(directory: str | os.PathLike) -> Manifest:
    """Reads and verifies a manifest.

    Any changed byte is detected: the text must be exactly what `encode_manifest` produces.

    Raises:
        CheckpointError: No manifest, damaged, or of another format version.
        UnsafeInputError: It names a file outside the folder.
    """
    path = Path(directory, MANIFEST_NAME)
    try:
        raw = files.read_small(path)
    except OSError as error:
        raise CheckpointError(
            f"{directory} is not a checkpoint: {MANIFEST_NAME} cannot be read ({error.strerror}). "
            "Give a folder that a save completed."
        ) from error
    try:
        content = json.loads(raw)
        version = content.pop("version")
        content.pop("sha256")
        content["files"] = {name: FileRecord(**record) for name, record in content["files"].items()}
        manifest = Manifest(**content)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}. Use another checkpoint.") from error
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: checkpoint format {version} is not known, this version reads "
            f"{FORMAT_VERSION}. Use the version of megatron_chimed that wrote it."
        )
    if encode_manifest(manifest) != raw:
        raise CheckpointError(f"{path} is damaged: its own hash does not match its content.")
    for name in manifest.files:
        check_relative(name, path)
    return manifest


def check_relative(name: str, owner: str | os.PathLike) -> None:
    """Refuses a file name that points outside its folder.

    Raises:
        UnsafeInputError: `name`, found in the file `owner`, is empty, absolute or climbs.
    """
    plain = PurePosixPath(name)
    if not name or "\0" in name or "\\" in name or plain.is_absolute() or ".." in plain.parts:
        raise UnsafeInputError(
            f"{owner} names the file {name!r}, which is outside its folder; it was refused."
        )


def check_size(directory: str | os.PathLike, name: str, record: FileRecord) -> None:
    """Raises CheckpointError unless the file is there, plain, and as long as recorded."""
    path = Path(directory, name)
    try:
        if path.is_symlink():
            raise OSError(errno.EINVAL, "it is a link, not a file", str(path))
        with files.open_plain(path) as stream:
            size = os.fstat(stream.fileno()).st_size
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing from the checkpoint.") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    if size != record.size:
        raise CheckpointError(f"{path} has {size} bytes, the manifest says {record.size}.")


def check_content(directory: str | os.PathLike, name: str, record: FileRecord) -> None:
    """Raises CheckpointError unless the file's size and SHA-256 are as recorded."""
    check_size(directory, name, record)
    path = Path(directory, name)
    try:
        digest = files.sha256_file(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    if digest != record.sha256:
        raise CheckpointError(f"{path}: sha256 mismatch, its content has changed since the save.")


def _dump(value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True, allow_nan=False)
    return text.encode() + b"\n"
