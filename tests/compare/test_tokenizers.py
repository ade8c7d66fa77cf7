"""What we export gives our ids in an older transformers, whose slow tokenizer is the way out."""

import json

import pytest

from megatron_chimed.tokenizer import SentencePieceTokenizer
from megatron_chimed.tokenizer.check_texts import texts_of_vocabulary
from megatron_chimed.tokenizer.saving import save_tokenizer
from tests.compare.environments import run_in
from tests.unit.tokenizer.samples import TEXTS, train_model
from tests.unit.tokenizer.test_exact_export import VOCABULARIES, extended

pytestmark = pytest.mark.compare

IDS = """
    import json, sys
    from pathlib import Path
    from transformers import AutoTokenizer, LlamaTokenizer
    folder, texts, slow = sys.argv[1:]
    if json.loads(slow):
        tokenizer = LlamaTokenizer(f"{folder}/tokenizer.model", legacy=True)
    else:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = json.loads(Path(texts).read_text(encoding="utf-8"))
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    print(json.dumps([tokenizer.is_fast, ids]))
"""


def differing(folder, tokenizer, texts, tmp_path, *, slow):
    (tmp_path / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    words = (folder, tmp_path / "texts.json", json.dumps(slow))
    is_fast, found = run_in("transformers-4.46", IDS, *words)
    assert is_fast is not slow
    expected = tokenizer.encode_batch(texts)
    return [text for text, a, b in zip(texts, expected, found, strict=True) if a != b]


def test_a_trained_tokenizer_gives_the_same_ids(tmp_path):
    tokenizer = SentencePieceTokenizer(train_model())
    (tmp_path / "saved").mkdir()
    save_tokenizer(tokenizer, tmp_path / "saved")
    texts = [text for text in TEXTS if "</s>" not in text]
    assert not differing(tmp_path / "saved", tokenizer, texts, tmp_path, slow=False)


@pytest.mark.parametrize("name", ["characters and 3000 words", "all"])
def test_extended_vocabularies_give_the_same_ids(real_data, tmp_path, name):
    tokenizer = SentencePieceTokenizer(extended(real_data, VOCABULARIES[name]))
    (tmp_path / "saved").mkdir()
    save_tokenizer(tokenizer, tmp_path / "saved")
    pieces = [tokenizer.token(i).replace("\u2581", " ") for i in range(259, tokenizer.model_size)]
    texts = list(texts_of_vocabulary(pieces, ["<0x0A>"]))[::5]
    texts += (real_data / "fever.txt").read_text(encoding="utf-8").split("\n")
    assert not differing(tmp_path / "saved", tokenizer, texts, tmp_path, slow=False)


def test_the_slow_tokenizer_that_a_refusal_names_gives_our_ids(real_data, tmp_path):
    tokenizer = SentencePieceTokenizer((real_data / "chinese_sp.model").read_bytes())
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved/tokenizer.model").write_bytes(tokenizer.model_bytes)
    pieces = [tokenizer.token(i).replace("\u2581", " ") for i in range(3, tokenizer.model_size)]
    texts = list(texts_of_vocabulary(pieces, []))[::10]
    wrong = differing(tmp_path / "saved", tokenizer, texts, tmp_path, slow=True)
    assert not wrong, wrong[:5]
