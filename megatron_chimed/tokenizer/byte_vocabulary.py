"""Vocabulary and merges of a `tokenizer.json` that holds byte-level BPE.

Read in C++ where the extension is built and the file is laid out plainly, as those of published
models are: 0.1 s for 150,000 entries and 300,000 merges. Otherwise in Python, ten times as slow,
which also says what is wrong with a damaged file.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from megatron_chimed.tokenizer.byte_level import BYTE_OF, UTF8_CHARACTERS

if TYPE_CHECKING:
    from megatron_chimed import _data_helpers

Spans = tuple[tuple[int, int], tuple[int, int]]
"""Bytes of the file that hold the vocabulary and the merges: begin and end of each."""


class Vocabulary(Protocol):
    """Entries by id and spelling."""

    @property
    def num_entries(self) -> int:
        """Number of entries."""
        ...

    @property
    def spans(self) -> Spans | None:
        """Where the file holds them; None: the parsed file has them."""
        ...

    def find(self, spelling: str) -> int | None:
        """The id of an entry."""
        ...

    def spelling(self, index: int) -> str | None:
        """The byte-level spelling of an entry."""
        ...

    def listing(self) -> bytes:
        """What decides ids: entries by id as "spelling id", and merges as "left right".

        One on each line, with an empty line between both.
        """
        ...


class CompiledVocabulary:
    """As `Vocabulary`, in C++. Ids and spellings are distinct, and merges are of the vocabulary.

    Args:
        compiled: What C++ has read.
    """

    def __init__(self, compiled: _data_helpers.ByteVocabulary) -> None:
        self.compiled = compiled
        self.num_entries = compiled.num_entries
        self.num_ids = compiled.num_ids
        self.spans: Spans | None = compiled.spans
        self.find = compiled.find

    def spelling(self, index: int) -> str | None:
        """As of `Vocabulary`."""
        return self.compiled.spelling(index) or None

    def listing(self) -> bytes:
        """As of `Vocabulary`."""
        return self.compiled.listing()

    def without_entries(self, content: bytes) -> bytes:
        """The file with an empty vocabulary and an empty list of merges."""
        vocab, merges = self.compiled.spans
        values = sorted([(vocab, b"{}"), (merges, b"[]")])
        ((begin, end), first), ((next_begin, next_end), second) = values
        return content[:begin] + first + content[end:next_begin] + second + content[next_end:]


class PlainVocabulary:
    """As `Vocabulary`, in Python. Nothing is to be asked of one that has a fault.

    Args:
        vocab: Spelling to id, as parsed.
        merges: Pairs of spellings, as parsed.
    """

    spans: Spans | None = None

    def __init__(self, vocab: Mapping[str, Any], merges: Sequence[Any]) -> None:
        self._vocab = vocab
        self._merges = merges
        self.num_entries = len(vocab)

    def find(self, spelling: str) -> int | None:
        """As of `Vocabulary`."""
        return self._vocab.get(spelling)

    def spelling(self, index: int) -> str | None:
        """As of `Vocabulary`."""
        return self._spellings.get(index)

    @functools.cached_property
    def _spellings(self) -> dict[int, str]:
        return {index: text for text, index in self._vocab.items()}

    def listing(self) -> bytes:
        """As of `Vocabulary`."""
        entries = sorted(self._vocab.items(), key=lambda item: item[1])
        lines = "\n".join(f"{text} {index}" for text, index in entries)
        merges = "\n".join(" ".join(pair) for pair in _pairs(self._merges))
        return f"{lines}\n\n{merges}".encode()

    def fault(self, added: Mapping[str, int]) -> str:
        """What is wrong with it, as a sentence; empty if nothing is.

        Args:
            added: Text to id of the added tokens.
        """
        return _fault_of_vocabulary(self._vocab, added) or _fault_of_merges(
            self._vocab, self._merges
        )


def read_in_cpp(content: bytes) -> CompiledVocabulary | None:
    """The vocabulary of a file; None without the extension or if the file is laid out otherwise."""
    try:
        from megatron_chimed._data_helpers import ByteVocabulary, UnsupportedModel
    except ImportError:
        return None
    try:
        return CompiledVocabulary(ByteVocabulary(content))
    except UnsupportedModel:
        return None


def fits_added(vocabulary: Vocabulary, added: Mapping[str, int]) -> bool:
    """Whether `PlainVocabulary.fault` would find nothing in a vocabulary that C++ has read.

    Args:
        vocabulary: The vocabulary.
        added: Text to id of the added tokens.
    """
    if not isinstance(vocabulary, CompiledVocabulary):
        return False
    for text, index in added.items():
        if vocabulary.find(text) not in (None, index) or index < 0:
            return False
        if vocabulary.spelling(index) not in (None, text):
            return False
    new = {index for index in added.values() if vocabulary.spelling(index) is None}
    is_shared = len(set(added.values())) < len(added)
    has_gap = vocabulary.num_entries + len(new) != max([vocabulary.num_ids - 1, *new]) + 1
    is_spelled = vocabulary.compiled.unspelled.keys() <= added.keys()
    has_bytes = all(vocabulary.find(character) is not None for character in UTF8_CHARACTERS)
    return not is_shared and not has_gap and is_spelled and has_bytes


def _fault_of_vocabulary(vocabulary: Mapping[str, Any], added: Mapping[str, int]) -> str:
    """What is wrong with the ids or spellings; empty if nothing."""
    if any(type(index) is not int for index in vocabulary.values()):
        return "an id of the vocabulary is no integer."
    texts: dict[int, str] = {}
    for text, index in (*vocabulary.items(), *added.items()):
        other = texts.setdefault(index, text)
        if other != text:
            return f"id {index} is both {other!r} and {text!r}."
    for text, index in added.items():
        if vocabulary.get(text, index) != index:
            return f"added token {text!r} has id {index}, but {vocabulary[text]} in the vocabulary."
    missing = next((index for index in range(len(texts)) if index not in texts), None)
    if missing is not None:
        return (
            f"no token has id {missing}, although ids go up to {max(texts)}: there must be no gap."
        )
    characters = set("".join(text for text in vocabulary if text not in added))
    if unknown := characters - BYTE_OF.keys():
        return f"the vocabulary has the character {min(unknown)!r}, which spells no byte."
    if unspelled := UTF8_CHARACTERS - vocabulary.keys():
        return f"the vocabulary has no entry for {len(unspelled)} of the 243 bytes of UTF-8."
    return ""


def _fault_of_merges(vocabulary: Mapping[str, int], merges: Sequence[Any]) -> str:
    """The first merge that cannot be applied, as a sentence; empty if there is none."""
    for number, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(type(x) is str for x in pair):  # noqa: PLR2004
            return f"merge {number} is {merge!r}, not a pair."
        left, right = pair
        if not (left in vocabulary and right in vocabulary and left + right in vocabulary):
            return f"merge {number} ({left!r}, {right!r}) is not of the vocabulary."
    return ""


def _pairs(merges: Sequence[Any]) -> Iterator[list[str]]:
    """Merges as pairs; older files write them with a space between."""
    return (merge.split(" ") if isinstance(merge, str) else merge for merge in merges)
