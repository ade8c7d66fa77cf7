"""Compares two prefixes: types, counts, origin, and the first document that differs."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_chimed.data.datasets.prefix import Prefix
from megatron_chimed.data.datasets.sidecar import Sidecar
from megatron_chimed.data.inspection.token_blocks import BLOCK_TOKENS

BLOCK_DOCUMENTS = 1 << 16
MISSING = "(none)"
SHOWN_LETTERS = 160


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One property that differs."""

    what: str
    """The property."""

    left: str
    """Its value in the first prefix."""

    right: str
    """Its value in the second prefix."""


@dataclass(frozen=True, kw_only=True)
class DocumentDifference:
    """The first document that differs."""

    document: int
    """Its index in both prefixes."""

    token: int | None
    """Its first token that differs in id or mask; None: ranks, prompts or lengths of its sequences
    differ."""


def compare_facts(left: Prefix, right: Prefix) -> Iterator[Difference]:
    """Differences in the index and the sidecar.

    Hashes and the command are left out: they only tell that something differs.
    """
    facts = [
        {
            "stage": prefix.stage,
            "dtype": prefix.indexed.dtype.name,
            "documents": prefix.indexed.num_documents,
            "sequences": len(prefix.indexed),
            "tokens": len(prefix.indexed.tokens),
        }
        for prefix in (left, right)
    ]
    yield from _compare(facts[0], facts[1])
    fields = [_fields(prefix.indexed.sidecar) for prefix in (left, right)]
    counted = set(facts[0])
    yield from (item for item in _compare(fields[0], fields[1]) if item.what not in counted)


def _fields(sidecar: Sidecar | None) -> dict[str, Any]:
    """Fields of a sidecar by name, with one field per source."""
    if sidecar is None:
        return {}
    fields = dataclasses.asdict(sidecar)
    for name in ("bin_sha256", "idx_sha256", "more_sha256", "command"):
        del fields[name]
    sources = {f"sources[{i}]": source for i, source in enumerate(fields.pop("sources"))}
    return fields | sources


def _compare(
    left: Mapping[str, Any], right: Mapping[str, Any], above: str = ""
) -> Iterator[Difference]:
    for name in dict.fromkeys([*left, *right]):
        a, b = left.get(name, MISSING), right.get(name, MISSING)
        if a == b:
            continue
        if all(isinstance(value, Mapping) and value for value in (a, b)):
            yield from _compare(a, b, f"{above}{name}.")
        else:
            yield Difference(what=f"{above}{name}", left=_brief(a), right=_brief(b))


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= SHOWN_LETTERS else f"{text[: SHOWN_LETTERS - 3]}..."


def first_difference(left: Prefix, right: Prefix) -> DocumentDifference | None:
    """The first document in both prefixes that differs; element types are ignored."""
    documents = min(left.indexed.num_documents, right.indexed.num_documents)
    begin = 0
    while begin < documents:
        end = _block_end(left, begin, min(begin + BLOCK_DOCUMENTS, documents))
        if not _is_same(left, right, begin, end):
            wrong = _bisect(left, right, begin, end)
            return DocumentDifference(document=wrong, token=_first_token(left, right, wrong))
        begin = end
    return None


def _block_end(prefix: Prefix, begin: int, end: int) -> int:
    """The end of a block of about `BLOCK_TOKENS` tokens."""
    ends = np.cumsum(prefix.indexed.document_lengths(begin, end), dtype=np.int64)
    return (
        begin + max(int(np.searchsorted(ends, BLOCK_TOKENS)), 1) if ends[-1] > BLOCK_TOKENS else end
    )


def _bisect(left: Prefix, right: Prefix, begin: int, end: int) -> int:
    while end - begin > 1:
        middle = (begin + end) // 2
        if _is_same(left, right, begin, middle):
            begin = middle
        else:
            end = middle
    return begin


def _is_same(left: Prefix, right: Prefix, begin: int, end: int) -> bool:
    """Whether a range of documents is equal in everything that both prefixes have."""
    pairs = zip(_arrays(left, begin, end), _arrays(right, begin, end), strict=False)
    return all(np.array_equal(a, b) for a, b in pairs)


def _arrays(prefix: Prefix, begin: int, end: int) -> Iterator[np.ndarray]:
    """Shape, ids, mask and ranks of a range of documents."""
    bounds = prefix.indexed.document_indices[begin : end + 1]
    sequences = slice(int(bounds[0]), int(bounds[-1]))
    yield np.diff(bounds)
    yield prefix.indexed.lengths[sequences]
    tokens = tokens_of(prefix, begin, end)
    yield prefix.indexed.tokens[tokens]
    if prefix.targets is not None:
        yield prefix.targets[tokens]
    if prefix.rankings is not None:
        yield prefix.rankings.ranks[sequences]
        yield prefix.rankings.margins[sequences]
        yield prefix.rankings.prompt_lengths[begin:end]


def tokens_of(prefix: Prefix, begin: int, end: int) -> slice:
    """The tokens of a range of documents as a slice of the token file."""
    start = prefix.indexed.document_start(begin)
    return slice(
        start, start + int(prefix.indexed.document_lengths(begin, end).sum(dtype=np.int64))
    )


def _first_token(left: Prefix, right: Prefix, document: int) -> int | None:
    places = [tokens_of(prefix, document, document + 1) for prefix in (left, right)]
    shorter = min(place.stop - place.start for place in places)
    pairs = [(left.indexed.tokens[places[0]], right.indexed.tokens[places[1]])]
    if left.targets is not None and right.targets is not None:
        pairs.append((left.targets[places[0]], right.targets[places[1]]))
    first = min(_first_unequal(a[:shorter], b[:shorter]) for a, b in pairs)
    if first < shorter:
        return first
    return first if places[0].stop - places[0].start != places[1].stop - places[1].start else None


def _first_unequal(left: np.ndarray, right: np.ndarray) -> int:
    is_unequal = left != right
    return int(np.argmax(is_unequal)) if is_unequal.any() else len(is_unequal)
