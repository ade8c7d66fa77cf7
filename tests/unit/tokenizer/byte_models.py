"""Small byte-level tokenizers as `tokenizer.json` files, for tests."""

import json
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from tests.unit.tokenizer.samples import LINES, TEXTS

CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
CL100K = (
    f"(?i:{CONTRACTIONS})"
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|NUMBER| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = {
    "gpt2": CONTRACTIONS + r"| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "qwen2": CL100K.replace("NUMBER", r"\p{N}"),
    "llama3": CL100K.replace("NUMBER", r"\p{N}{1,3}"),
}


def alphabet() -> list[str]:
    """What stands for each byte in a vocabulary, by byte."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = iter(range(256))
    return [chr(byte if byte in shown else 256 + next(hidden)) for byte in range(256)]


def spell(text: bytes) -> str:
    """A token of these bytes as the vocabulary spells it."""
    characters = alphabet()
    return "".join(characters[byte] for byte in text)


def tokenizer_json(
    merges: Iterable[tuple[bytes, bytes]],
    *,
    pattern: str = "qwen2",
    whole: Iterable[bytes] = (),
    normalizer: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """A file's contents: all bytes, what the merges give, and tokens that no merge gives."""
    pairs = [(spell(left), spell(right)) for left, right in merges]
    tokens = [*alphabet(), *(left + right for left, right in pairs), *map(spell, whole)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": normalizer and {"type": normalizer},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": PATTERNS[pattern]},
                    "behavior": "Isolated",
                    "invert": False,
                },
                {
                    "type": "ByteLevel",
                    "add_prefix_space": False,
                    "trim_offsets": False,
                    "use_regex": False,
                },
            ],
        },
        "post_processor": None,
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: index for index, token in enumerate(dict.fromkeys(tokens))},
            "merges": [list(pair) for pair in pairs],
        }
        | options,
    }


def learn_merges(count: int) -> list[tuple[bytes, bytes]]:
    """Merges of neighbours in the sample texts, the most frequent first; some split characters."""
    words = [list(bytes([byte]) for byte in text.encode()) for text in (*LINES, *TEXTS)]
    merges: list[tuple[bytes, bytes]] = []
    while len(merges) < count:
        found: dict[tuple[bytes, bytes], int] = {}
        for word in words:
            for pair in zip(word, word[1:], strict=False):
                found[pair] = found.get(pair, 0) + 1
        best = max(found, key=lambda pair: (found[pair], pair))
        merges.append(best)
        words = [_apply(word, best) for word in words]
    return merges


def _apply(word: list[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    merged: list[bytes] = []
    for part in word:
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return merged


def to_bytes(contents: dict[str, Any]) -> bytes:
    """The file."""
    return json.dumps(contents, ensure_ascii=False).encode()


def reference(contents: dict[str, Any]) -> Tokenizer:
    """The library's tokenizer; it finds no added tokens, since text is text."""
    return Tokenizer.from_str(to_bytes(contents | {"added_tokens": []}).decode())


def is_byte_alphabet(characters: list[str]) -> bool:
    """Whether the library's alphabet has the same characters."""
    return sorted(characters) == sorted(ByteLevel.alphabet())
