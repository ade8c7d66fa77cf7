"""Opens all files of a prefix, of any stage."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_chimed.data.datasets.indexed import CHECK_ENTRIES, IndexedDataset, file_paths
from megatron_chimed.data.datasets.preference import Rankings, read_rankings
from megatron_chimed.data.datasets.sidecar import Rendering, read_sidecar
from megatron_chimed.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """The files of one prefix, opened and checked against each other."""

    name: str
    """Its path, as given."""

    stage: str
    """What its tokens are for: `pretrain`, `sft` or `preference`."""

    indexed: IndexedDataset
    """The token files."""

    targets: np.ndarray | None = None
    """uint8 `[tokens]`, 1 where a token is to be predicted; None in pretraining."""

    rankings: Rankings | None = None
    """Ranks of answers; None unless the stage is `preference`."""

    @property
    def rendering(self) -> Rendering | None:
        """How conversations became these tokens; None for plain text or if unknown."""
        sidecar = self.indexed.sidecar
        return None if sidecar is None else sidecar.rendering


def prefix_exists(name: str) -> bool:
    """Whether an index with this prefix exists, of any stage."""
    return any(Path(f"{name}{ranked}.idx").exists() for ranked in ("", ".ranked"))


def open_prefix(name: str) -> Prefix:
    """Opens the files of the sidecar's stage; without a sidecar, stock token files.

    Raises:
        ConfigError: A file is missing.
        DataError: A file is damaged, or the files do not belong together.
    """
    sidecar_path = file_paths(name)[2]
    stage = read_sidecar(sidecar_path).stage if sidecar_path.exists() else "pretrain"
    if stage == "pretrain":
        return Prefix(name=name, stage=stage, indexed=IndexedDataset(name))
    if stage == "sft":
        indexed = IndexedDataset(name)
        return Prefix(name=name, stage=stage, indexed=indexed, targets=_open_targets(indexed))
    if stage != "preference":
        raise DataError(
            f"{sidecar_path}: stage is {stage!r}, which this program does not know. "
            "Use the version that wrote it, or preprocess again."
        )
    indexed = IndexedDataset(f"{name}.ranked", sidecar_path=sidecar_path)
    return Prefix(
        name=name,
        stage=stage,
        indexed=indexed,
        targets=_open_targets(indexed),
        rankings=read_rankings(Path(f"{name}.rank.json"), indexed),
    )


def _open_targets(indexed: IndexedDataset) -> np.ndarray:
    """The mask beside token files: one byte per token."""
    mask = IndexedDataset(f"{indexed.prefix}.mask")
    if mask.dtype != np.uint8:
        raise DataError(
            f"{mask.idx_path}: {mask.dtype.name} elements, but a mask has uint8: preprocess again."
        )
    is_same = len(mask) == len(indexed) and all(
        np.array_equal(
            mask.lengths[start : start + CHECK_ENTRIES],
            indexed.lengths[start : start + CHECK_ENTRIES],
        )
        for start in range(0, len(mask), CHECK_ENTRIES)
    )
    if not is_same:
        raise DataError(
            f"{mask.idx_path}: its sequences are not those of {indexed.idx_path.name}. The files "
            "are from different runs: preprocess again."
        )
    return mask.tokens


def check_stage(prefix: Prefix, stage: str) -> None:
    """Refuses data that were made for another stage.

    Raises:
        ConfigError: The stages differ.
    """
    if prefix.stage != stage:
        raise ConfigError(
            f"data {prefix.name!r} was preprocessed with --stage {prefix.stage}, but this run "
            f"trains on {stage} data. Preprocess with --stage {stage}, or set another `stage:`."
        )


def check_tokenizer(indexed: IndexedDataset, vocab_size: int, tokenizer_identity: str) -> None:
    """Refuses data whose ids do not fit the model, according to the sidecar.

    Raises:
        ConfigError: The tokenizer differs, or an id is outside the vocabulary.
    """
    sidecar = indexed.sidecar
    if sidecar is None:  # a stock Megatron file: only the ids in each batch can be checked
        return
    if sidecar.max_token_id >= vocab_size:
        raise ConfigError(
            f"data {indexed.prefix!r} holds token id {sidecar.max_token_id} (tokenizer "
            f"{sidecar.tokenizer_name!r}, vocabulary {sidecar.vocab_size}), but the model's "
            f"vocabulary is {vocab_size}. Preprocess with the model's tokenizer."
        )
    if sidecar.tokenizer_sha256 != tokenizer_identity:
        raise ConfigError(
            f"data {indexed.prefix!r} was made with tokenizer {sidecar.tokenizer_name!r} "
            f"(sha256 {sidecar.tokenizer_sha256[:12]}, vocabulary {sidecar.vocab_size}), but this "
            f"run's tokenizer is sha256 {tokenizer_identity[:12]} (vocabulary {vocab_size}). "
            "Preprocess again with this run's tokenizer, or use that of the data."
        )


def content_of(indexed: IndexedDataset) -> str:
    """Identifies the content of a prefix: its hashes, or the sizes of a stock Megatron file."""
    sidecar = indexed.sidecar
    if sidecar is None:
        return f"{len(indexed)} sequences, {int(indexed.lengths.sum())} tokens"
    others = sorted(f"{name} {sha256}" for name, sha256 in sidecar.more_sha256.items())
    return f"sha256 {', '.join([sidecar.bin_sha256, sidecar.idx_sha256, *others])}"
