"""`P.meta.json`: where a prefix's tokens come from and what they must be read with.

Stock Megatron files have none; ours always do, and a reader checks the files against it.
"""

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_chimed.errors import DataError

FORMAT_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Source:
    """One input file and what became of it.

    Nothing is lost without a count: `rows - quarantined` rows held `examples`, and
    `examples = documents + empty + sum of removed`.
    """

    file: str
    """Path as the command was given it."""

    bytes: int
    """Size of the file."""

    rows: int
    """Rows read, blank ones not counted."""

    documents: tuple[int, int]
    """First document from this file, and the first that is not."""

    quarantined: int = 0
    """Malformed rows, listed in `P.quarantine.jsonl`."""

    examples: int = 0
    """Texts, conversations or rankings in the other rows; a row may hold several."""

    empty: int = 0
    """Examples without text, dropped."""

    removed: dict[str, int] = field(default_factory=dict)
    """Examples dropped for another reason: by the cleaning rule or the cause."""

    changed: dict[str, int] = field(default_factory=dict)
    """What cleaning altered, by rule."""

    truncated: int = 0
    """Documents that lost tokens or turns to `seq_length`."""

    dropped_turns: int = 0
    """Turns that those lost whole."""

    tokens: int = 0
    """Tokens of the documents."""

    supervised_tokens: int = 0
    """Tokens whose mask is 1; 0 where there is no mask."""

    end_tokens: int = 0
    """Supervised end-of-turn tokens: the ones that teach a model to stop."""


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """How conversations became tokens."""

    template: str
    """Name of the template, or the path of its file."""

    template_identity: str
    """`Template.identity`: equal where the template is."""

    targets: str
    """Which answers are supervised."""

    seq_length: int | None
    """Most tokens of a sequence; None: no limit."""

    truncation: str
    """What happens to longer ones."""


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """What `P.meta.json` holds."""

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
    """Of the whole token file."""

    idx_sha256: str
    """Of the whole index."""

    sources: tuple[Source, ...]
    """The input files in order."""

    command: str
    """The command that made the files."""

    rendering: Rendering | None = None
    """None for plain text."""

    cleaning: dict[str, Any] = field(default_factory=dict)
    """The cleaning rules that were on, and the report of decontamination."""

    more_sha256: dict[str, str] = field(default_factory=dict)
    """Of the other files, by what follows the prefix, such as `.mask.bin`."""

    format_version: int = FORMAT_VERSION
    """Of this file."""

    @property
    def supervised_tokens(self) -> int:
        """Of all sources."""
        return sum(source.supervised_tokens for source in self.sources)

    @property
    def end_tokens(self) -> int:
        """Supervised ones, of all sources."""
        return sum(source.end_tokens for source in self.sources)


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
            _checked(Source(**{**source, "documents": tuple(source["documents"])}))
            for source in value.pop("sources")
        )
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


def _checked(value: Any) -> Any:
    """The dataclass itself.

    Raises:
        TypeError: A field is not of its type.
    """
    for name, kind in typing.get_type_hints(type(value)).items():
        if not _fits(getattr(value, name), kind):
            raise TypeError(f"{name} is {getattr(value, name)!r}")
    return value


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type as the fields above have them."""
    if kind is Any:
        return True
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, each) for each in arguments)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(v, arguments[1]) for v in value.values())
    if origin is tuple:
        each = arguments[:1] * len(value) if Ellipsis in arguments else arguments
        return len(value) == len(each) and all(map(_fits, value, each))
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))
