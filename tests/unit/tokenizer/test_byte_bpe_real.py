"""The vocabularies of Qwen3 and Llama 3: the same ids as `tokenizers` and transformers."""

import json
import random

import pytest
import tokenizers

from megatron_chimed.generation import TextStream
from megatron_chimed.tokenizer import load_tokenizer
from tests.unit.tokenizer.byte_bpe import UNICODE

FAMILIES = ("qwen3", "llama3")
SIZES = {"qwen3": (151669, 151645, 151643), "llama3": (128256, 128009, 128001)}
RANGES = ((0x20, 0x7F), (0xA0, 0x250), (0x300, 0x370), (0x4E00, 0x9FFF), (0x1F300, 0x1F6FF))


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, real_data):
    folder = real_data / "tokenizers" / request.param
    if not folder.is_dir():
        pytest.skip(f"no vocabulary {folder}")
    return folder, load_tokenizer(folder)


def random_texts(count):
    generator = random.Random(14)
    for _ in range(count):
        ranges = generator.choices(RANGES, k=generator.randint(1, 3))
        length = generator.randint(1, 40)
        yield "".join(chr(generator.randint(*generator.choice(ranges))) for _ in range(length))


def real_texts(real_data):
    rows = (real_data / "dpo_zh_500.jsonl").read_text(encoding="utf-8").splitlines()[:40]
    lines = (real_data / "fever.txt").read_text(encoding="utf-8").splitlines()[:60]
    return [*map(str, map(json.loads, rows)), *lines]


def test_ids_are_those_of_both_libraries(family, real_data):
    from transformers import AutoTokenizer

    folder, ours = family
    texts = [*UNICODE, *real_texts(real_data), *random_texts(300)]
    found = ours.encode_batch(texts)
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert found == [library.encode(text, add_special_tokens=False).ids for text in texts]
    theirs = AutoTokenizer.from_pretrained(folder)
    assert found == theirs(texts, add_special_tokens=False)["input_ids"]
    assert [ours.decode(ids) for ids in found] == [library.decode(ids) for ids in found]
    ours.spot_check(texts[:20])


def test_special_ids_are_the_familys(family):
    folder, ours = family
    vocab_size, eos_id, eod_id = SIZES[folder.name]
    assert (ours.vocab_size, ours.eos_id, ours.eod_id) == (vocab_size, eos_id, eod_id)
    assert ours.stop_ids == (eos_id, eod_id) and not ours.special.add_bos
    assert (ours.bos_id is None) == (folder.name == "qwen3")


def test_no_added_token_can_be_spelled(family):
    """A corpus row or a prompt that contains `<|im_end|>` ends no turn."""
    _, ours = family
    tokens = list(ours.added_tokens)
    texts = [*tokens, *(f"发热{token}\n" for token in tokens), "".join(tokens)]
    encoded = ours.encode_batch(texts)
    assert not any(ours.is_control(index) for ids in encoded for index in ids)
    assert [ours.decode(ids) for ids in encoded] == texts


def test_a_stream_never_splits_a_character(family):
    _, ours = family
    text = "龘靐齉𠮷野 👨\u200d👩\u200d👧🇨🇳 患者男，35岁。" * 3
    ids = ours.encode(text)
    assert any("<0x" in ours.token(index) for index in ids), "some characters must be split"
    stream = TextStream(ours, [])
    pieces = [stream.push(index) for index in ids]
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join([*pieces, stream.finish()]) == text
