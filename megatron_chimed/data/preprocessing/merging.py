"""Merges several prefixes of one kind into one: the body of tools/merge_datasets.py.

Files are copied as a whole and verified against their hash on the way, so a damaged file never
becomes part of the output. Only the index is written anew.
"""

import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from megatron_chimed.data.cleaning.report import merge_reports, report_from_json
from megatron_chimed.data.datasets.indexed import CHECK_ENTRIES, IndexedDataset
from megatron_chimed.data.datasets.sidecar import Sidecar, SourceSummary, read_sidecar
from megatron_chimed.data.preprocessing.journal import check_output_prefix
from megatron_chimed.data.preprocessing.output_files import append_rank_file
from megatron_chimed.data.preprocessing.writer import (
    LENGTHS,
    RANKS,
    SIDECAR,
    SUFFIXES,
    IndexedWriter,
    output_path,
)
from megatron_chimed.disk_space import require_space
from megatron_chimed.errors import ConfigError, DataError
from megatron_chimed.files import sha256_file

# What must not differ: name -> how to read it from a sidecar.
KIND: dict[str, Callable[[Sidecar], object]] = {
    "stage": lambda s: s.stage,
    "element type": lambda s: s.dtype,
    "tokenizer": lambda s: s.tokenizer_sha256,
    "end of document": lambda s: s.eod_id,
    "template": lambda s: s.rendering and s.rendering.template_identity,
    "targets": lambda s: s.rendering and s.rendering.targets,
}


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """Settings of tools/merge_datasets.py."""

    inputs: tuple[str, ...]
    """Prefixes, in order."""

    output_prefix: str
    """Path of the output without `.bin` and `.idx`."""

    overwrite: bool = False
    """Replace existing output, once the new one is complete."""

    def __post_init__(self) -> None:
        """Checks the settings.

        Raises:
            ConfigError: There is no input, or the output is one of them.
        """
        if not self.inputs:
            raise ConfigError("--inputs names no prefix.")
        check_output_prefix(self.output_prefix)
        output = os.path.abspath(self.output_prefix)
        if output in map(os.path.abspath, self.inputs):
            raise ConfigError(
                f"--output-prefix {self.output_prefix!r} is one of --inputs. Choose another."
            )


def merge(config: MergeConfig) -> Sidecar:
    """Writes the documents of all inputs, in order, as one prefix.

    Returns:
        The sidecar that was written; it lists the sources of all inputs.

    Raises:
        ConfigError: An input does not exist.
        DataError: The inputs differ in kind, lack a sidecar, or are damaged.
        OutputError: The output exists or cannot be written.
    """
    sidecars = [_read_sidecar(prefix) for prefix in config.inputs]
    _check_kind(config.inputs, sidecars)
    first = sidecars[0]
    needed = _size(config.inputs, first.stage)
    require_space(config.output_prefix, needed, "the merged files")
    with IndexedWriter(
        config.output_prefix, first.dtype, overwrite=config.overwrite, stage=first.stage
    ) as writer:
        for prefix, sidecar in zip(config.inputs, sidecars, strict=True):
            _append(writer, prefix, sidecar)
        return writer.finalize(
            lambda bin_sha256, idx_sha256: replace(
                _joined(config, sidecars),
                sequences=writer.sequences,
                documents=writer.documents,
                tokens=writer.tokens,
                bin_sha256=bin_sha256,
                idx_sha256=idx_sha256,
            )
        )


def _size(prefixes: Sequence[str], stage: str) -> int:
    """Size in bytes of all files of the prefixes."""
    paths = [output_path(prefix, suffix) for prefix in prefixes for suffix in SUFFIXES[stage]]
    return sum(path.stat().st_size for path in paths if path.exists())


def _read_sidecar(prefix: str) -> Sidecar:
    path = output_path(prefix, SIDECAR)
    if path.exists():
        return read_sidecar(path)
    if not any(output_path(prefix, suffix).exists() for suffix in (".idx", ".ranked.idx")):
        raise ConfigError(
            f"--inputs {prefix!r}: {path} does not exist. Give the path without .bin and .idx, as "
            "passed to --output-prefix of tools/preprocess_data.py."
        )
    raise DataError(
        f"{path} does not exist, so the tokenizer that made {prefix} is unknown. Preprocess the "
        "text again; merge stock Megatron files with Megatron's own tool."
    )


def _check_kind(prefixes: Sequence[str], sidecars: Sequence[Sidecar]) -> None:
    for prefix, sidecar in zip(prefixes, sidecars, strict=True):
        for what, read in KIND.items():
            if read(sidecar) != read(sidecars[0]):
                raise DataError(
                    f"{prefix} and {prefixes[0]} differ in {what}: {read(sidecar)!r} and "
                    f"{read(sidecars[0])!r}. A prefix has one of each: preprocess them with the "
                    "same settings, or keep them separate and blend them in training."
                )


def _append(writer: IndexedWriter, prefix: str, sidecar: Sidecar) -> None:
    suffixes = SUFFIXES[sidecar.stage]
    bin_name, idx_name = suffixes[1], suffixes[-1]
    indexed = IndexedDataset(f"{prefix}{idx_name.removesuffix('.idx')}")
    found = len(indexed), indexed.num_documents, len(indexed.tokens), indexed.dtype.name
    stated = sidecar.sequences, sidecar.documents, sidecar.tokens, sidecar.dtype
    if found != stated:
        raise DataError(f"{prefix}: the index has {found}, its sidecar {stated}: preprocess again.")
    expected = {**sidecar.more_sha256, bin_name: sidecar.bin_sha256, idx_name: sidecar.idx_sha256}
    for suffix, sha256 in expected.items():
        path = output_path(prefix, suffix)
        is_copied = suffix in writer.spools
        sha256_now = writer.spools[suffix].append_file(path) if is_copied else sha256_file(path)
        if sha256_now != sha256:
            raise DataError(
                f"{path}: its sha256 is {sha256_now[:12]}, but the sidecar states {sha256[:12]}. "
                "It was damaged or replaced: preprocess again."
            )
    for start in range(0, len(indexed), CHECK_ENTRIES):
        lengths = indexed.lengths[start : start + CHECK_ENTRIES]
        writer.spools[LENGTHS].append(np.ascontiguousarray(lengths, np.int32).data)
    if sidecar.stage == "preference":
        candidates = np.diff(indexed.document_indices).astype(np.int32)
        append_rank_file(output_path(prefix, RANKS), candidates, writer.spools)
    writer.documents += sidecar.documents
    writer.sequences += sidecar.sequences
    writer.tokens += sidecar.tokens
    writer.max_token_id = max(writer.max_token_id, sidecar.max_token_id)


def _joined(config: MergeConfig, sidecars: Sequence[Sidecar]) -> Sidecar:
    """The sidecar of the merged prefix, without the counts and hashes that the writer knows."""
    sources: list[SourceSummary] = []
    start = 0
    for sidecar in sidecars:
        for source in sidecar.sources:
            documents = source.documents[0] + start, source.documents[1] + start
            sources.append(replace(source, documents=documents))
        start += sidecar.documents
    rendering = sidecars[0].rendering
    if rendering is not None:
        limits = [s.rendering.seq_length if s.rendering is not None else None for s in sidecars]
        known = [limit for limit in limits if limit is not None]
        is_limited = len(known) == len(limits)
        rendering = replace(rendering, seq_length=max(known) if is_limited else None)
    words = ["tools/merge_datasets.py", "--inputs", *config.inputs]
    return replace(
        sidecars[0],
        max_token_id=max(sidecar.max_token_id for sidecar in sidecars),
        sources=tuple(sources),
        command=shlex.join([*words, "--output-prefix", config.output_prefix]),
        rendering=rendering,
        cleaning=_joined_cleaning(config.inputs, [sidecar.cleaning for sidecar in sidecars]),
    )


def _joined_cleaning(
    prefixes: Sequence[str], cleanings: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The summed report if all inputs were cleaned alike, else one report per input.

    Test questions that were found cannot be summed either: two inputs may hold the same one.
    """
    if not any(cleanings):
        return {}
    settings = [cleaning.get("settings") for cleaning in cleanings]
    is_alike = settings[0] is not None and all(each == settings[0] for each in settings)
    if not is_alike or any("decontamination" in cleaning for cleaning in cleanings):
        return {"inputs": [list(pair) for pair in zip(prefixes, cleanings, strict=True)]}
    reports = [
        report_from_json({"found": (), **{k: v for k, v in cleaning.items() if k != "settings"}})
        for cleaning in cleanings
    ]
    report = asdict(merge_reports(reports))
    del report["found"]
    return {"settings": settings[0], **report}
