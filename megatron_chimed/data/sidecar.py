"""`P.meta.json`: where a prefix's tokens come from and what they must be read with.

Stock Megatron files have none; ours always do, and a reader checks the files against it.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_chimed.errors import DataError

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Source:
    """One input file and what became of it."""

    file: str
    """Path as the command was given it."""

    bytes: int
    """Size of the file."""

    rows: int
    """Rows read, blank ones not counted."""

    documents: tuple[int, int]
    """First document from this file, and the first that is not."""

    blank: int = 0
    """Blank lines, skipped."""

    empty: int = 0
    """Rows whose text is empty or only white space, dropped."""

    quarantined: int = 0
    """Malformed rows, listed in `P.quarantine.jsonl`."""


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """What `P.meta.json` holds."""

    stage: str
    """What the tokens are for: `pretrain`."""

    tokenizer_name: str
    """Path the tokenizer was loaded from."""

    tokenizer_sha256: str
    """`Tokenizer.identity`."""

    vocab_size: int
    """`Tokenizer.vocab_size`."""

    eod_id: int | None
    """The id at each document's end; None: none was appended."""

    max_token_id: int
    """Largest id in the file; -1 without tokens."""

    dtype: str
    """Element type of `P.bin`, as numpy names it."""

    sequences: int
    """Sequences in `P.idx`."""

    documents: int
    """Documents in `P.idx`."""

    tokens: int
    """Tokens in `P.bin`."""

    bin_sha256: str
    """Of the whole of `P.bin`."""

    idx_sha256: str
    """Of the whole of `P.idx`."""

    sources: tuple[Source, ...]
    """The input files in order."""

    command: str
    """The command that made the files."""

    format_version: int = FORMAT_VERSION
    """Of this file."""


def sidecar_to_json(sidecar: Sidecar) -> dict[str, Any]:
    """The JSON object that `read_sidecar` reads back."""
    return dataclasses.asdict(sidecar)


def read_sidecar(path: Path) -> Sidecar:
    """Reads `P.meta.json`.

    Raises:
        DataError: Malformed, of another format version, or with missing or unknown fields.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error}): preprocess again.") from None
    version = value.get("format_version") if isinstance(value, dict) else None
    if version != FORMAT_VERSION:
        raise DataError(
            f"{path}: format_version is {version!r}, this program reads {FORMAT_VERSION}: "
            "preprocess again."
        )
    try:
        sources = tuple(
            Source(**{**source, "documents": tuple(source["documents"])})
            for source in value.pop("sources")
        )
        return Sidecar(**value, sources=sources)
    except (TypeError, KeyError) as error:
        raise DataError(f"{path}: missing or unknown field ({error}): preprocess again.") from None
