"""Reads and checks a `tokenizer.json` that holds byte-level BPE.

That is the kind of GPT-2, Qwen, Llama 3 and DeepSeek. The file of any other kind is refused by
name: its ids would be guesses.
"""

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_chimed.errors import DataError
from megatron_chimed.tokenizer.byte_level import spell
from megatron_chimed.tokenizer.byte_vocabulary import (
    PlainVocabulary,
    Vocabulary,
    fits_added,
    read_in_cpp,
)

FORMS = ("NFC", "NFD", "NFKC", "NFKD")
KNOWN = (
    "known are byte-level BPE in a tokenizer.json (Qwen, Llama 3, DeepSeek), and sentencepiece in "
    "a tokenizer.model"
)


@dataclass(frozen=True, kw_only=True)
class AddedToken:
    """A token beside the merges."""

    text: str
    """Its spelling."""

    index: int
    """Its id."""

    is_special: bool
    """Structure rather than text: omitted when ids are decoded."""

    is_word: bool
    """Whether it was added as a word of text, neither special nor exempt from normalisation. All
    others are structure."""


@dataclass(frozen=True, kw_only=True)
class ByteBpe:
    """The content of a `tokenizer.json`."""

    raw: dict[str, Any]
    """The parsed file; without vocabulary and merges where `vocabulary` was read in C++."""

    vocabulary: Vocabulary
    """Its vocabulary and merges."""

    added: tuple[AddedToken, ...]
    """All added tokens, by id."""

    num_ids: int
    """The largest id plus one; every id below is that of a token."""

    def spelling(self, index: int) -> str:
        """Byte-level spelling; of an added token without an entry in the vocabulary, its text."""
        return self.vocabulary.spelling(index) or self._added_texts[index]

    @functools.cached_property
    def _added_texts(self) -> dict[int, str]:
        return {token.index: token.text for token in self.added}

    def find(self, text: str) -> int | None:
        """The id of an added token, or of the entry for exactly this text, or None."""
        index = next((token.index for token in self.added if token.text == text), None)
        if index is not None:
            return index
        return self.vocabulary.find(spell(text.encode("utf-8", "surrogatepass")))

    def identity(self) -> str:
        """Hex SHA-256 of what decides ids; the same for files that differ in their layout only."""
        model = self.raw["model"]
        rules = {
            "normalizer": self.raw.get("normalizer"),
            "pre_tokenizer": _without_offsets(self.raw.get("pre_tokenizer")),
            "ignore_merges": bool(model.get("ignore_merges")),
            "added": [[token.text, token.index, token.is_word] for token in self.added],
        }
        digest = hashlib.sha256(b"byte-level BPE\n")
        digest.update(json.dumps(rules, sort_keys=True).encode())
        digest.update(self.vocabulary.listing())
        return digest.hexdigest()


def read_object(content: bytes, source: str) -> dict[str, Any]:
    """The JSON object of a file.

    Raises:
        DataError: The file holds none.
    """
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source} is not valid JSON: {error}. Restore the file.") from None
    if not isinstance(value, dict):
        raise DataError(f"{source} holds a {type(value).__name__}, not a JSON object.")
    return value


def text_of(entry: Any) -> Any:
    """The text of a token, which is written as a text or as an object with `content`."""
    return entry.get("content") if isinstance(entry, dict) else entry


def added_entries(raw: Mapping[str, Any], source: str) -> list[Any]:
    """The `added_tokens` of a tokenizer.json, unchecked.

    Raises:
        DataError: They are no list.
    """
    entries = raw.get("added_tokens") or []
    if not isinstance(entries, list):
        raise DataError(f"{source}: added_tokens is not a list. Restore the file.")
    return entries


def read_tokenizer_json(content: bytes, source: str) -> tuple[dict[str, Any], Vocabulary | None]:
    """The parsed file, and its vocabulary if C++ has read it.

    Then the model of the file that is returned has neither vocabulary nor merges: parsing them with
    `json` and checking them one by one takes a second for 150,000 entries.

    Raises:
        DataError: The file holds no JSON object.
    """
    vocabulary = read_in_cpp(content)
    if vocabulary is not None:
        try:
            return json.loads(vocabulary.without_entries(content)), vocabulary
        except (ValueError, RecursionError):
            pass  # the message names the place in the whole file
    return read_object(content, source), None


def parse_byte_bpe(
    content: bytes,
    raw: Mapping[str, Any],
    vocabulary: Vocabulary | None,
    source: str,
    extra: Sequence[AddedToken] = (),
) -> ByteBpe:
    """Checks the content of a `tokenizer.json`.

    Args:
        content: The bytes of the file.
        raw: As `read_tokenizer_json` has returned it.
        vocabulary: Likewise.
        source: Its path, for messages.
        extra: Tokens that only other files of its folder add.

    Raises:
        DataError: It is damaged, or holds another kind of tokenizer.
    """
    model = raw.get("model")
    if not isinstance(model, dict):
        raise DataError(f"{source} has no model: it is not a tokenizer.json, or a damaged one.")
    if fault := _fault_of_kind(raw, model):
        raise DataError(f"{source} {fault}; {KNOWN}.")
    tokens = {token.text: token for token in (*_added(raw, source), *extra)}
    added = sorted(tokens.values(), key=lambda token: token.index)
    indices = {token.text: token.index for token in added}
    if vocabulary is None or not fits_added(vocabulary, indices):
        raw = raw if vocabulary is None else read_object(content, source)
        plain = PlainVocabulary(raw["model"]["vocab"], raw["model"]["merges"])
        if fault := plain.fault(indices):
            raise DataError(f"{source}: {fault} Restore the file.")
        vocabulary = plain
    new = [index for index in indices.values() if vocabulary.spelling(index) is None]
    num_ids = vocabulary.num_entries + len(new)
    return ByteBpe(raw=dict(raw), vocabulary=vocabulary, added=tuple(added), num_ids=num_ids)


def without_structure(content: bytes, bpe: ByteBpe) -> str:
    """A `tokenizer.json` for encoding text alone, in which only added words are recognised.

    Structure keeps its ids and is marked special: the library skips special tokens in text if
    `encode_special_tokens` is set, and no others.
    """
    entries = [
        {
            "id": token.index,
            "content": token.text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": token.is_word,
            "special": not token.is_word,
        }
        for token in bpe.added
    ]
    raw = bpe.raw
    flags = {entry["content"]: entry for entry in raw.get("added_tokens") or []}
    entries = [flags[e["content"]] | e if e["content"] in flags else e for e in entries]
    unused = {"truncation": None, "padding": None, "post_processor": None, "decoder": None}
    model = {"type": "BPE"} | raw["model"]
    if bpe.vocabulary.spans is None:
        return json.dumps({**raw, **unused, "added_tokens": entries, "model": model})
    # Vocabulary and merges as they are written: to parse and write them again would take 0.2 s.
    vocab, merges = (content[begin:end].decode("utf-8") for begin, end in bpe.vocabulary.spans)
    raw = {key: value for key, value in raw.items() if key != "model"}
    model = {key: value for key, value in model.items() if key not in ("vocab", "merges")}
    rest = json.dumps({**raw, **unused, "added_tokens": entries, "model": model})
    return f'{rest[:-2]}, "vocab": {vocab}, "merges": {merges}}}}}'


def steps_of(part: Any, key: str) -> Iterator[Mapping[str, Any]]:
    """The steps of a normalizer, pre-tokenizer or post-processor, sequences resolved."""
    if not isinstance(part, dict):
        return
    if part.get("type") == "Sequence":
        steps = part.get(key)
        for step in steps if isinstance(steps, list) else ():
            yield from steps_of(step, key)
    else:
        yield part


def _fault_of_kind(raw: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    """Why this is no byte-level BPE, as a predicate; empty if it is."""
    kind = model.get("type", "BPE" if "merges" in model else None)
    if kind != "BPE":
        return f"holds a model of type {kind!r}"
    if not isinstance(model.get("vocab"), dict) or not isinstance(model.get("merges"), list):
        return "holds a BPE model without vocab or merges"
    if model.get("byte_fallback"):
        return (
            "holds a BPE over characters with byte fallback, as converted from sentencepiece, so "
            "only its tokenizer.model gives exact ids"
        )
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            return f"holds a BPE model with {option} {model[option]!r}"
    for step in steps_of(raw.get("normalizer"), "normalizers"):
        if step.get("type") not in FORMS:
            return f"normalizes with {step.get('type')!r}, not with {', '.join(FORMS)} or nothing"
    steps = list(steps_of(raw.get("pre_tokenizer"), "pretokenizers"))
    if not steps or steps[-1].get("type") != "ByteLevel":
        return "holds a BPE model over characters, not over bytes (its last step is not ByteLevel)"
    if steps[-1].get("add_prefix_space", True):
        return "puts a space before each text (add_prefix_space)"
    return ""


def _added(raw: Mapping[str, Any], source: str) -> Iterator[AddedToken]:
    for entry in added_entries(raw, source):
        text, index = (entry.get("content"), entry.get("id")) if isinstance(entry, dict) else (0, 0)
        if not isinstance(text, str) or not text or type(index) is not int:
            raise DataError(f"{source}: added token {text!r} with id {index!r}.")
        is_special = bool(entry.get("special"))
        yield AddedToken(
            text=text,
            index=index,
            is_special=is_special,
            is_word=not is_special and bool(entry.get("normalized")),
        )


def _without_offsets(part: Any) -> Any:
    """A pre-tokenizer without the setting that moves offsets only."""
    if isinstance(part, dict):
        return {k: _without_offsets(v) for k, v in part.items() if k != "trim_offsets"}
    return [_without_offsets(item) for item in part] if isinstance(part, list) else part
