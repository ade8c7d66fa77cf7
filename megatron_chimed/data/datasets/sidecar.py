"""`P.meta.json`: the origin of a prefix's tokens, and the tokenizer they must be read with.

Stock Megatron files have none; ours always do, and readers check the files against it.
"""

import dataclasses
import hashlib
import json
import re
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_chimed.errors import DataError

FORMAT_VERSION = 2
OWN_KEY = "sidecar_sha256"
"""The last key of the file: SHA-256 of the file with this digest replaced by zeros."""
_OWN = re.compile(rb'(?<="' + OWN_KEY.encode() + rb'": ")[^"\n]{64}(?=")')
_ZEROS = "0" * 64


@dataclass(frozen=True, kw_only=True)
class SourceSummary:
    """One input file and what became of its rows.

    Every loss is counted: `rows - quarantined` rows gave `examples`, and
    `examples = documents + empty + sum of removed`.
    """

    file: str
    """Path as given to the command."""

    bytes: int
    """Size of the file."""

    rows: int
    """Rows read, without blank ones."""

    documents: tuple[int, int]
    """First document from this file, and the first after them."""

    quarantined: int = 0
    """Malformed rows, listed in `P.quarantine.jsonl`."""

    examples: int = 0
    """Texts, conversations or rankings in the other rows; a row may have several."""

    empty: int = 0
    """Examples without text, dropped."""

    removed: dict[str, int] = field(default_factory=dict)
    """Examples dropped for other reasons, by cleaning rule or cause."""

    changed: dict[str, int] = field(default_factory=dict)
    """Changes made by cleaning, by rule."""

    truncated: int = 0
    """Documents that lost tokens or turns to `seq_length`."""

    dropped_turns: int = 0
    """Whole turns lost by those documents."""

    tokens: int = 0
    """Tokens of the documents."""

    supervised_tokens: int = 0
    """Tokens whose mask is 1; 0 without a mask."""

    end_tokens: int = 0
    """Supervised end-of-turn tokens, which teach a model to stop."""

    unread_keys: tuple[dict[str, Any], ...] = ()
    """Keys that nothing reads: `name` (`messages[].name` within messages), `rows` that have a value
    under it, and the first value as JSON, shortened, as `example`."""


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """How conversations became tokens."""

    template: str
    """Name of the template, or the path of its file."""

    template_identity: str
    """`Template.identity`: equal for equal templates."""

    targets: str
    """Which answers are supervised."""

    seq_length: int | None
    """Maximum tokens of a sequence; None: no limit."""

    truncation: str
    """What happens to longer ones."""


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """The content of `P.meta.json`."""

    stage: str
    """What the tokens are for: `pretrain`, `sft` or `preference`."""

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
    """Element type of the token file, as numpy names it."""

    sequences: int
    """Sequences in the index."""

    documents: int
    """Documents in the index."""

    tokens: int
    """Tokens in the token file."""

    bin_sha256: str
    """Hash of the token file."""

    idx_sha256: str
    """Hash of the index."""

    sources: tuple[SourceSummary, ...]
    """The input files in order."""

    command: str
    """The command that made the files."""

    rendering: Rendering | None = None
    """None for plain text."""

    cleaning: dict[str, Any] = field(default_factory=dict)
    """The cleaning settings and report."""

    more_sha256: dict[str, str] = field(default_factory=dict)
    """Hashes of the other files, by suffix, such as `.mask.bin`."""

    block_sha256: dict[str, list[str]] = field(default_factory=dict)
    """Hashes of the blocks of `files.BLOCK_BYTES` of larger files, by suffix: ranks share a file by
    them. Absent for files of earlier versions, which one rank hashes alone."""

    format_version: int = FORMAT_VERSION
    """Version of this file's format."""

    @property
    def supervised_tokens(self) -> int:
        """Supervised tokens of all sources."""
        return sum(source.supervised_tokens for source in self.sources)

    @property
    def end_tokens(self) -> int:
        """Supervised end tokens of all sources."""
        return sum(source.end_tokens for source in self.sources)

    def stated_sha256(self) -> dict[str, str | None]:
        """The hash of every file of the stage, by suffix; None: an earlier version stored none."""
        ranked = ".ranked" if self.stage == "preference" else ""
        files: dict[str, str | None] = {
            f"{ranked}.bin": self.bin_sha256,
            f"{ranked}.idx": self.idx_sha256,
        }
        if self.stage in ("sft", "preference"):
            files |= {f"{ranked}.mask.bin": None, f"{ranked}.mask.idx": None}
        if self.stage == "preference":
            files[".rank.json"] = None
        return {suffix: stated or self.more_sha256.get(suffix) for suffix, stated in files.items()}


def encode_sidecar(sidecar: Sidecar) -> bytes:
    """The file that `read_sidecar` reads back."""
    value = dataclasses.asdict(sidecar) | {OWN_KEY: _ZEROS}
    text = json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False)
    # A file name that is not valid UTF-8 becomes a JSON escape.
    raw = f"{text}\n".encode("utf-8", "backslashreplace")
    return _OWN.sub(hashlib.sha256(raw).hexdigest().encode(), raw)


def read_sidecar(path: Path) -> Sidecar:
    """Reads `P.meta.json`, and verifies it: any changed byte is found.

    Raises:
        DataError: The file is malformed, has another format version, missing or unknown fields, or
            another hash than it states. Files of earlier versions state none.
    """
    raw = path.read_bytes()
    stated = _OWN.search(raw)
    if stated is not None:
        found = hashlib.sha256(_OWN.sub(_ZEROS.encode(), raw)).hexdigest()
        _require_own_hash(path, stated.group().decode(errors="backslashreplace"), found)
    try:
        value = json.loads(raw.decode("utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error}): preprocess again.") from None
    if isinstance(value, dict) and (digest := value.pop(OWN_KEY, None)) is not None:
        _require_own_hash(path, digest, None if stated is None else digest)
    version = value.get("format_version") if isinstance(value, dict) else None
    if version != FORMAT_VERSION:
        raise DataError(
            f"{path}: format_version is {version!r}, this program reads {FORMAT_VERSION}: "
            "preprocess again."
        )
    try:
        sources = tuple(map(_source, value.pop("sources")))
        rendering = value.pop("rendering")
        return _checked(
            Sidecar(
                **value,
                sources=sources,
                rendering=None if rendering is None else _checked(Rendering(**rendering)),
            )
        )
    except (TypeError, KeyError) as error:
        raise DataError(
            f"{path}: missing or unknown field, or of a wrong type ({error}): preprocess again."
        ) from None


def _require_own_hash(path: Path, stated: object, found: object) -> None:
    if stated != found:
        raise DataError(
            f"{path}: its sha256 is {found or 'unknown'}, but it states {stated}: it was damaged "
            "or edited after it was written. Restore it from a copy, or preprocess again."
        )


def _source(value: dict[str, Any]) -> SourceSummary:
    tuples = {"documents": tuple(value["documents"])}
    tuples["unread_keys"] = tuple(value.get("unread_keys", ()))  # earlier sidecars have none
    return _checked(SourceSummary(**{**value, **tuples}))


def _checked(value: Any) -> Any:
    """Returns the dataclass after checking its field types.

    Raises:
        TypeError: A field has the wrong type.
    """
    for name, kind in typing.get_type_hints(type(value)).items():
        if not _fits(getattr(value, name), kind):
            raise TypeError(f"{name} is {getattr(value, name)!r}")
    return value


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value has a type; supports the types of the fields above."""
    if kind is Any:
        return True
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, each) for each in arguments)
    if origin is list:
        return isinstance(value, list) and all(_fits(each, arguments[0]) for each in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(v, arguments[1]) for v in value.values())
    if origin is tuple:
        each = arguments[:1] * len(value) if Ellipsis in arguments else arguments
        return len(value) == len(each) and all(map(_fits, value, each))
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))
