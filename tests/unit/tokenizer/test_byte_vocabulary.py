"""A vocabulary is read in C++ as in Python, or left to Python, which says what is wrong with it."""

import json
import random
from typing import Any

import pytest

from megatron_chimed._data_helpers import ByteVocabulary, UnsupportedModel
from megatron_chimed.errors import DataError
from megatron_chimed.tokenizer import byte_vocabulary, load_tokenizer, tokenizer_json
from megatron_chimed.tokenizer.byte_vocabulary import PlainVocabulary, read_in_cpp
from tests.unit.tokenizer.byte_bpe import HOSTILE, UNICODE, toy_json, write_folder

ODD = {'"': '"', "\\": "\\", "Ġ": "\u0120", "发": "发", "😀": "😀"}


def written(content: object, **options: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False, **options).encode()


def compare(content: bytes) -> None:
    """Reads the same entries in both ways."""
    compiled = read_in_cpp(content)
    assert compiled is not None
    model = json.loads(content)["model"]
    plain = PlainVocabulary(model["vocab"], model["merges"])
    assert compiled.num_entries == plain.num_entries
    assert compiled.listing() == plain.listing()
    texts = [*model["vocab"], *ODD, "", "\ud800", "no such entry", "Ã", "\x7f"]
    assert [compiled.find(text) for text in texts] == [plain.find(text) for text in texts]
    indices = range(max(model["vocab"].values()) + 2)
    assert [compiled.spelling(i) for i in indices] == [plain.spelling(i) for i in indices]
    rest = json.loads(content)
    rest["model"] |= {"vocab": {}, "merges": []}
    assert json.loads(compiled.without_entries(content)) == rest


LAYOUTS = {
    "as published": lambda content: written(content),
    "indented": lambda content: written(content, indent=2),
    "escaped": lambda content: json.dumps(content, indent="\t").encode(),
    "merges first": lambda content: written(
        content | {"model": dict(reversed(content["model"].items()))}
    ),
    "pairs as texts": lambda content: written(
        content | {"model": content["model"] | {"merges": list(map(" ".join, pairs(content)))}}
    ),
    "no merges": lambda content: written(content | {"model": content["model"] | {"merges": []}}),
    "odd entries": lambda content: written(
        toy_json(vocab=content["model"]["vocab"] | {"发": 9999})
    ),
}


def pairs(content: dict[str, Any]) -> list[list[str]]:
    return [pair.split(" ") if isinstance(pair, str) else pair
            for pair in content["model"]["merges"]]  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_both_ways_read_the_same(layout):
    compare(LAYOUTS[layout](toy_json()))


@pytest.mark.parametrize("name", ["qwen3", "llama3"])
def test_both_ways_read_the_same_of_published_files(name, real_data):
    compare((real_data / "tokenizers" / name / "tokenizer.json").read_bytes())


COMPACT = written(toy_json(), separators=(",", ":")).decode()
LEFT_TO_PYTHON = {
    "a key twice": COMPACT.replace('"merges"', '"vocab":{},"merges"'),
    "an entry twice": COMPACT.replace('"vocab":{', '"vocab":{"a":9999,'),
    "an id twice": COMPACT.replace('"vocab":{', '"vocab":{"no such entry":5,'),
    "an escaped key": COMPACT.replace('"vocab"', '"voc\\u0061b"'),
    "a fraction": written(toy_json(vocab={"a": 1.5})).decode(),
    "a word for an id": written(toy_json(vocab={"a": True})).decode(),
    "an empty entry": written(toy_json(vocab={"": 1})).decode(),
    "half a surrogate": written(toy_json(vocab={"x": 1})).decode().replace('"x"', '"\\ud800"'),
    "a control character": written(toy_json(vocab={"x": 1})).decode().replace('"x"', '"\x01"'),
    "nothing": "",
    "no object": "[]",
    "a list": written(toy_json(vocab=[])).decode(),
}


@pytest.mark.parametrize("name", LEFT_TO_PYTHON)
def test_another_layout_is_left_to_python(name):
    with pytest.raises(UnsupportedModel):
        ByteVocabulary(LEFT_TO_PYTHON[name].encode())


def test_a_damaged_file_is_never_read_as_another():
    """Any byte may be lost, doubled or wrong: C++ reads what Python reads, or nothing."""
    text = written(toy_json())
    random_ = random.Random(3)
    read = 0
    for _ in range(600):
        at = random_.randrange(len(text))
        byte = bytes([random_.choice([*b'"\\{}[]:, 0189-.eu\n\0\x80\xff', random_.randrange(256)])])
        damaged = random_.choice(
            [text[:at], text[:at] + text[at + 1 :], text[:at] + byte + text[at:],
             text[:at] + byte + text[at + 1 :]]
        )  # fmt: skip
        compiled = read_in_cpp(damaged)
        if compiled is None:
            continue
        try:
            content = json.loads(damaged)
        except ValueError:
            with pytest.raises(ValueError):
                json.loads(compiled.without_entries(damaged))
            continue
        read += 1
        compare(damaged)
        assert content["model"].keys() >= {"vocab", "merges"}
    assert read > 50


def test_a_tokenizer_is_the_same_in_both_ways(tmp_path, monkeypatch):
    one = load_tokenizer(write_folder(tmp_path / "a"))
    assert one.fast.startswith("C++")
    monkeypatch.setattr(tokenizer_json, "read_in_cpp", lambda content: None)
    other = load_tokenizer(tmp_path / "a")
    assert other.fast == "tokenizers: the file is not laid out as the C++ encoder reads it"
    texts = [*UNICODE, *HOSTILE]
    assert one.encode_batch(texts) == other.encode_batch(texts)
    assert (one.identity, one.vocab_size) == (other.identity, other.vocab_size)
    indices = range(one.vocab_size)
    assert [one.token(i) for i in indices] == [other.token(i) for i in indices]
    one.spot_check(texts)


def test_what_c_plus_plus_cannot_use_is_named_by_python(tmp_path):
    """The messages do not depend on whether the extension is built."""
    content = toy_json()
    content["added_tokens"].append({"id": 999, "content": "<a>", "special": True})
    with pytest.raises(DataError, match="no token has id 406, although ids go up to 999"):
        load_tokenizer(write_folder(tmp_path, content))
    assert byte_vocabulary.read_in_cpp(written(content)) is not None
