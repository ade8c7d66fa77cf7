"""Hashes of what steps read and write, so that changes are found by content.

Token files are identified by the hashes in their sidecar, checkpoints by their manifest, tokenizers
by their identity, so nothing large is read for them. Everything else is hashed, once: a file is
read again only when its size or one of its times has changed.
"""

import glob
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from megatron_chimed import files
from megatron_chimed.data.datasets.sidecar import read_sidecar
from megatron_chimed.data.preprocessing.writer import (
    QUARANTINE,
    SIDECAR,
    SUFFIXES,
    existing_outputs,
    output_path,
)
from megatron_chimed.errors import ChimedError, ConfigError, DataError
from megatron_chimed.launch.node_states import FOLDER_NAME as LAUNCH_FOLDER
from megatron_chimed.tokenizer import load_tokenizer

ArtifactType = Literal["files", "prefix", "checkpoint", "tokenizer", "template"]
Hashes = dict[str, str]
"""Hash of each part, such as a file, by name."""

LARGE_BYTES = 1 << 30


class HashCache:
    """SHA-256 of files, cached on disk.

    Args:
        path: The cache's file.
        say: Called with a message for each large file that has to be read.
    """

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self._path, self._say = path, say
        self._known: dict[str, list] = {}
        self._is_changed = False
        try:
            self._known = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return
        except ValueError:
            say(f"{path} is damaged: every input is hashed again")

    def sha256(self, path: Path) -> str:
        """SHA-256 of a file as it is now."""
        status = path.stat()
        # The modification time can be set back; the change time (ctime) cannot.
        stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        known = self._known.get(str(path))
        if known is not None and known[:-1] == stamp:
            return known[-1]
        if status.st_size >= LARGE_BYTES:
            self._say(f"hashing {path}, {status.st_size / 1e9:.1f} GB")
        digest = files.sha256_file(path)
        self._known[str(path)] = [*stamp, digest]
        self._is_changed = True
        return digest

    def save(self) -> None:
        """Writes the cache if it has changed."""
        if self._is_changed:
            files.write_json(self._path, self._known)
            self._is_changed = False


def hash_artifact(artifact: ArtifactType, path: str, cache: HashCache) -> Hashes:
    """Hashes of what is at a path.

    Raises:
        ConfigError: Nothing is there, or it is incomplete.
        DataError, CheckpointError: It is damaged.
    """
    if artifact == "prefix":
        return _prefix(path, cache)
    if artifact == "checkpoint":
        return _checkpoint(path)
    if artifact == "tokenizer":
        return {"tokenizer": load_tokenizer(path).identity}
    if artifact == "template" and not Path(path).is_file():
        return {"template": path}  # one of the built-in names
    return _files(path, cache)


def exists(artifact: ArtifactType, path: str) -> bool:
    """Whether anything is at the path, complete or not."""
    if artifact == "prefix":
        return bool(existing_outputs(path))
    folder = Path(path)
    if not folder.is_dir():
        return os.path.lexists(folder)
    # A launcher whose ranks never started leaves only its own records.
    return any(item.name != LAUNCH_FOLDER for item in folder.iterdir())


def is_complete(artifact: ArtifactType, path: str, cache: HashCache) -> bool:
    """Whether what is at the path can be used."""
    try:
        hash_artifact(artifact, path, cache)
    except ChimedError:
        return False
    return True


def set_aside(artifact: ArtifactType, path: str) -> str | None:
    """Renames what is at a path to `path.replaced-N`; returns that path, or None if nothing is."""
    if not exists(artifact, path):
        return None
    number = 1
    while glob.glob(glob.escape(f"{path}.replaced-{number}") + "*"):
        number += 1
    target = f"{path}.replaced-{number}"
    if artifact == "prefix":
        # The index first: without it the rest cannot be opened.
        for old in [*existing_outputs(path), output_path(path, QUARANTINE)]:
            if old.exists():
                os.rename(old, f"{target}{str(old).removeprefix(path)}")
    else:
        os.rename(path, target)
    files.fsync_directory(Path(path).absolute().parent)
    return target


def _prefix(path: str, cache: HashCache) -> Hashes:
    sidecar_path = output_path(path, SIDECAR)
    if not sidecar_path.exists():  # stock Megatron's
        return {s: cache.sha256(_existing(output_path(path, s))) for s in (".bin", ".idx")}
    sidecar = read_sidecar(sidecar_path)
    if sidecar.stage not in SUFFIXES:
        raise DataError(f"{sidecar_path}: stage is {sidecar.stage!r}, which is unknown.")
    for suffix in SUFFIXES[sidecar.stage]:
        if suffix != QUARANTINE:
            _existing(output_path(path, suffix))
    return {".bin": sidecar.bin_sha256, ".idx": sidecar.idx_sha256} | sidecar.more_sha256


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ConfigError(f"{path} does not exist.")
    return path


def _checkpoint(path: str) -> Hashes:
    from megatron_chimed.checkpoint.manifest import MANIFEST_NAME, read_manifest
    from megatron_chimed.checkpoint.reader import newest_checkpoint

    if not Path(path).exists():
        raise ConfigError(f"{path} does not exist.")
    newest = newest_checkpoint(path)
    read_manifest(newest)
    manifest = (newest / MANIFEST_NAME).read_bytes()
    return {newest.name: hashlib.sha256(manifest).hexdigest()}


def _files(path: str, cache: HashCache) -> Hashes:
    root = Path(path)
    if root.is_file():
        return {root.name: cache.sha256(root)}
    if root.is_dir():
        found = {str(file.relative_to(root)): file for file in _walk(root)}
    else:
        matches = (Path(match) for match in glob.glob(path, recursive=True))
        found = {str(match): match for match in sorted(matches) if match.is_file()}
        if not found:
            raise ConfigError(f"{path} does not exist.")
    if not found:
        raise ConfigError(f"{path} holds no files.")
    return {name: cache.sha256(file) for name, file in found.items()}


def _walk(folder: Path) -> list[Path]:
    temporary = files.TEMPORARY_PREFIX
    found = []
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith(temporary))
        found += [Path(root, name) for name in sorted(names) if not name.startswith(temporary)]
    return found
