"""What a path holds, as hashes: two steps that read equal contents read the same.

Token files are known by the hashes in their sidecar, checkpoints by their manifest, tokenizers by
their identity, so that nothing large is read for them. Everything else is hashed, once: a file is
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
from megatron_chimed.launch.roster import FOLDER_NAME as LAUNCH_FOLDER
from megatron_chimed.tokenizer import load_tokenizer

Content = Literal["files", "prefix", "checkpoint", "tokenizer", "template"]
Hashes = dict[str, str]
"""Name of each part, such as a file's, and its hash."""

LARGE_BYTES = 1 << 30


class HashCache:
    """SHA-256 of files, remembered in a file of its own.

    Args:
        path: Where they are remembered.
        say: Told of each large file that has to be read.
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
        """Of a file as it is now."""
        status = path.stat()
        # A file's own time can be set back; the time of its last change of status cannot.
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
        """Writes what is new."""
        if self._is_changed:
            files.write_json(self._path, self._known)
            self._is_changed = False


def hashes_of(content: Content, path: str, cache: HashCache) -> Hashes:
    """What lies at a path.

    Raises:
        ConfigError: Nothing that is complete.
        DataError, CheckpointError: It is damaged.
    """
    if content == "prefix":
        return _prefix(path, cache)
    if content == "checkpoint":
        return _checkpoint(path)
    if content == "tokenizer":
        return {"tokenizer": load_tokenizer(path).identity}
    if content == "template" and not Path(path).is_file():
        return {"template": path}  # one of the built-in names
    return _files(path, cache)


def is_there(content: Content, path: str) -> bool:
    """Whether anything lies at the path, complete or not."""
    if content == "prefix":
        return bool(existing_outputs(path))
    place = Path(path)
    if not place.is_dir():
        return os.path.lexists(place)
    # A launcher whose ranks never began leaves its own records only.
    return any(item.name != LAUNCH_FOLDER for item in place.iterdir())


def is_complete(content: Content, path: str, cache: HashCache) -> bool:
    """Whether what lies at the path can be used."""
    try:
        hashes_of(content, path, cache)
    except ChimedError:
        return False
    return True


def set_aside(content: Content, path: str) -> str | None:
    """Renames what lies at a path to `path.replaced-N`; returns that path, None: nothing there."""
    if not is_there(content, path):
        return None
    number = 1
    while glob.glob(glob.escape(f"{path}.replaced-{number}") + "*"):
        number += 1
    target = f"{path}.replaced-{number}"
    if content == "prefix":
        # The index goes first: without it the rest cannot be opened.
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
        raise DataError(f"{sidecar_path}: stage is {sidecar.stage!r}, which is not known here.")
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
    place = Path(path)
    if place.is_file():
        return {place.name: cache.sha256(place)}
    if place.is_dir():
        found = {str(file.relative_to(place)): file for file in _below(place)}
    else:
        matches = (Path(match) for match in glob.glob(path, recursive=True))
        found = {str(match): match for match in sorted(matches) if match.is_file()}
        if not found:
            raise ConfigError(f"{path} does not exist.")
    if not found:
        raise ConfigError(f"{path} holds no files.")
    return {name: cache.sha256(file) for name, file in found.items()}


def _below(folder: Path) -> list[Path]:
    temporary = files.TEMPORARY_PREFIX
    found = []
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith(temporary))
        found += [Path(root, name) for name in sorted(names) if not name.startswith(temporary)]
    return found
