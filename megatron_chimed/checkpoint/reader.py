"""Reading a committed checkpoint: any region of any tensor, at any layout, without pickle.

Use `open_checkpoint`: it verifies every file before anything is read. A reader made directly from a
folder has verified all but the files of tensors and of the tokenizer.
"""

import contextlib
import functools
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from megatron_chimed.checkpoint import codec, commit
from megatron_chimed.checkpoint import manifest as manifests
from megatron_chimed.checkpoint.contents import (
    CONFIG_NAME,
    INDEX_NAME,
    STATE_NAME,
    TOKENIZER_FOLDER,
)
from megatron_chimed.checkpoint.index import (
    MOMENT_PREFIXES,
    GlobalTensor,
    decode_index,
    intersect,
    slices_within,
)
from megatron_chimed.checkpoint.kinds import not_a_checkpoint
from megatron_chimed.checkpoint.safetensors_io import SafetensorsFile
from megatron_chimed.errors import CheckpointError

if TYPE_CHECKING:  # a reader starts without megatron-core, which the engine imports
    from megatron_chimed.engine.agreement import Agreement

logger = logging.getLogger(__name__)

_REFERENCE = "#"


class CheckpointReader:
    """One committed checkpoint.

    Args:
        directory: The folder `iter_N`.

    Raises:
        CheckpointError: Manifest or index damaged, a file missing or of another size.
        UnsafeInputError: A file name that leads out of the folder.
    """

    def __init__(self, directory: str | os.PathLike):
        self.directory = Path(directory)
        self.manifest = manifests.read_manifest(directory)
        for name, record in self.manifest.files.items():
            manifests.check_size(directory, name, record)
        self.config: dict[str, Any] = self._json(CONFIG_NAME)
        self.tensors: Mapping[str, GlobalTensor] = self._read_index()
        self._open_files: dict[str, SafetensorsFile] = {}

    @property
    def iteration(self) -> int:
        """Optimizer steps done when it was written."""
        return self.manifest.iteration

    @property
    def has_optimizer(self) -> bool:
        """Whether it holds optimizer state beside weights."""
        return any(key.startswith(MOMENT_PREFIXES) for key in self.tensors)

    @property
    def tokenizer_folder(self) -> Path | None:
        """The folder with the tokenizer's files, if the checkpoint has one."""
        inside = any(name.startswith(f"{TOKENIZER_FOLDER}/") for name in self.manifest.files)
        return self.directory / TOKENIZER_FOLDER if inside else None

    @functools.cached_property
    def state(self) -> dict[str, Any]:
        """The state that the run saved: scheduler, data position, ..."""
        return codec.decode(self._encoded_state["state"], self._fetch)

    @functools.cached_property
    def rank_states(self) -> list[Any]:
        """State that differs from rank to rank, in the rank order of `manifest.layout`."""
        return codec.decode(self._encoded_state["rank_states"], self._fetch)

    def read(self, key: str) -> torch.Tensor:
        """A copy of a whole tensor in its stored dtype."""
        tensor = self.tensors[key]
        out = torch.empty(tensor.shape, dtype=tensor.dtype)
        self.read_region(key, (0,) * len(tensor.shape), out)
        return out

    def read_region(self, key: str, offset: tuple[int, ...], out: torch.Tensor) -> None:
        """Fills `out` with the region at `offset` that has its shape; converts dtype and device."""
        wanted = (offset, tuple(out.shape))
        with torch.no_grad():
            for shard in self.tensors[key].shards:
                common = intersect(wanted, shard.region)
                if common is not None:
                    source = self._file(shard.file).view(shard.name)
                    out[slices_within(offset, common)].copy_(
                        source[slices_within(shard.offset, common)]
                    )

    def verify(self, agreement: "Agreement | None" = None) -> None:
        """Hashes every file; ranks share the files evenly by size.

        Raises:
            CheckpointError: A file's content has changed; on every rank.
        """
        if agreement is None:
            self._verify_files([*self.manifest.files])
            return
        shares: list[list[str]] = [[] for _ in range(agreement.size)]
        loads = [0] * agreement.size
        for name, record in sorted(self.manifest.files.items(), key=lambda item: -item[1].size):
            rank = loads.index(min(loads))
            shares[rank].append(name)
            loads[rank] += record.size
        agreement.on_all_ranks(lambda: self._verify_files(shares[agreement.rank]))

    def _verify_files(self, names: list[str]) -> None:
        for name in names:
            manifests.check_content(self.directory, name, self.manifest.files[name])
            if name.endswith(".safetensors"):
                self._check_shards(name)

    def _check_shards(self, name: str) -> None:
        specs = self._file(name).specs
        for tensor in self.tensors.values():
            for shard in tensor.shards:
                if shard.file != name:
                    continue
                spec = specs.get(shard.name)
                if spec is None or spec.shape != shard.shape or spec.dtype is not tensor.dtype:
                    raise CheckpointError(
                        f"{self.directory / name}: index.json expects {shard.name} as "
                        f"{shard.shape} {tensor.dtype}, the file has {spec}."
                    )

    @functools.cached_property
    def _encoded_state(self) -> dict[str, Any]:
        return self._json(STATE_NAME)

    def _read_index(self) -> dict[str, GlobalTensor]:
        path, content = self.directory / INDEX_NAME, self._json(INDEX_NAME)
        try:
            tensors = decode_index(content)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{path} is malformed: {error!r}.") from error
        shards = [shard for tensor in tensors.values() for shard in tensor.shards]
        for file in {shard.file for shard in shards} - set(self.manifest.files):
            raise CheckpointError(f"{path} names {file!r}, which the manifest does not know.")
        return tensors

    def _json(self, name: str) -> Any:
        path = self.directory / name
        if name not in self.manifest.files:
            raise CheckpointError(f"{self.directory} has no {name} in its manifest.")
        # Small, and used before `verify` runs: so its hash is checked now.
        manifests.check_content(self.directory, name, self.manifest.files[name])
        try:
            return json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}.") from error

    def _file(self, name: str) -> SafetensorsFile:
        if name not in self._open_files:
            self._open_files[name] = SafetensorsFile(self.directory / name)
        return self._open_files[name]

    def _fetch(self, reference: str) -> torch.Tensor:
        file, name = reference.split(_REFERENCE, 1)
        if file not in self.manifest.files:
            raise CheckpointError(f"{STATE_NAME} names {file!r}, unknown to the manifest.")
        return self._file(file).read(name)


def reference(file: str, name: str) -> str:
    """How `state.json` refers to a tensor."""
    return f"{file}{_REFERENCE}{name}"


def open_checkpoint(
    path: str | os.PathLike, *, agreement: "Agreement | None" = None, strict: bool = False
) -> CheckpointReader:
    """Opens and verifies a checkpoint, the same one on every rank.

    Args:
        path: One checkpoint (`.../iter_0000100`, or the file `.../best` that names one), a folder
            of them, or a run that has a folder `checkpoints`. The newest valid checkpoint of a
            folder is opened, whatever `latest` says; a damaged one is named in a warning.
        agreement: The ranks that open it; they share the hashing.
        strict: A damaged newest checkpoint is an error; older ones are not tried.

    Raises:
        CheckpointError: There is none, or none is valid; every reason is named.
        ConfigError: Ranks find another checkpoint under the same name.
    """
    from megatron_chimed.engine.agreement import Agreement

    agreement = agreement or Agreement()
    names = agreement.on_rank_0(lambda: [str(found) for found in _candidates(Path(path))])
    reasons = []
    for name in names:
        try:
            return _open_on_all_ranks(name, agreement)
        except CheckpointError as error:
            if strict or len(names) == 1:
                raise
            reasons.append(str(error))
            if agreement.rank == 0:
                logger.warning("skipping a damaged checkpoint: %s", error)
    raise CheckpointError(f"{path}: no checkpoint is valid. " + " ".join(reasons))


def newest_readable(path: str | os.PathLike) -> CheckpointReader | None:
    """The newest checkpoint whose JSON files are valid, or None; its tensors are not read.

    Args:
        path: As in `open_checkpoint`, which decides what is used; this only looks ahead.
    """
    with contextlib.suppress(CheckpointError):
        for folder in _candidates(Path(path)):
            with contextlib.suppress(CheckpointError):
                return CheckpointReader(folder)
    return None


def newest_checkpoint(path: str | os.PathLike) -> Path:
    """The newest checkpoint by name, its content not read; `path` as in `open_checkpoint`.

    Raises:
        CheckpointError: There is none.
    """
    return _candidates(Path(path))[0]


def _open_on_all_ranks(name: str, agreement: "Agreement") -> CheckpointReader:
    reader = agreement.together(lambda: CheckpointReader(name))
    digest = manifests.manifest_sha256(reader.manifest)
    agreement.require_same({f"the manifest of {name}": f"sha256 {digest}"})
    reader.verify(agreement)
    return reader


def _candidates(path: Path) -> list[Path]:
    path = commit.hinted(path) or path
    if path.exists() and (advice := not_a_checkpoint(path)) is not None:
        raise CheckpointError(advice)
    if not path.is_dir():
        raise CheckpointError(f"{path} is not a folder. Give a checkpoint or a folder of them.")
    if (path / manifests.MANIFEST_NAME).exists() or path.name.startswith("iter_"):
        return [path]
    root = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    found = commit.committed(root)
    if not found:
        raise CheckpointError(
            f"{path} holds no checkpoint (a folder iter_N with a {manifests.MANIFEST_NAME})."
        )
    hint = root / commit.LATEST_NAME
    if hint.is_file() and hint.read_bytes().strip() != found[0].name.encode():
        logger.warning("%s does not name the newest checkpoint %s; ignored", hint, found[0].name)
    return found
