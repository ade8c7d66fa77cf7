"""Texts and vocabularies for benchmarks of tokenizers."""

import csv
import json
import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sentencepiece import sentencepiece_model_pb2 as pb2

from megatron_chimed.tokenizer import bpe_training as training

ORDER = 3  # of the Markov chain, in characters
ZIYA_PIECES = 39408
JSON_LINES = ("medical_corpus.txt", "medical_sft_1K_format.jsonl", "dpo_zh_500.jsonl")


def read_real_texts(folder: Path) -> list[str]:
    """Every string value and line of text in the real files."""
    texts = (folder / "fever.txt").read_text(encoding="utf-8").splitlines()
    for name in JSON_LINES:
        for line in (folder / name).read_text(encoding="utf-8").splitlines():
            texts.extend(_strings(json.loads(line)))
    texts.extend(_strings(json.loads((folder / "CMtMedQA_test.json").read_text(encoding="utf-8"))))
    for path in sorted(folder.glob("cmmlu_medical/*/*.csv")):
        with path.open(encoding="utf-8", newline="") as rows:
            texts.extend(cell for row in csv.reader(rows) for cell in row)
    return [text for text in texts if text]


def make_corpus(texts: list[str], megabytes: float, *, seed: int = 0) -> list[str]:
    """Documents of a Markov chain over the texts' characters, of log-normal length."""
    random_ = random.Random(seed)
    text = "\n".join(texts)
    following = defaultdict(list)
    for i in range(len(text) - ORDER):
        following[text[i : i + ORDER]].append(text[i + ORDER])
    states = list(following)
    documents, size = [], 0.0
    while size < megabytes * 1e6:
        state = random_.choice(states)
        characters = [state]
        for _ in range(20 + int(random_.lognormvariate(5.5, 1))):
            choices = following.get(state) or [random_.choice(states)[0]]
            characters.append(choices[int(random_.random() * len(choices))])
            state = state[1:] + characters[-1]
        documents.append("".join(characters))
        size += len(documents[-1].encode("utf-8"))
    return documents


def make_models(folder: Path, texts: list[str]) -> dict[str, bytes]:
    """LLaMA's vocabulary, that extended as Ziya's was, and one trained on the texts."""
    llama = (folder / "llama2_tokenizer.model").read_bytes()
    lines = [line for text in texts for line in text.splitlines() if line.strip()]
    trained = training.train_model(lines, vocab_size=32000, character_coverage=0.9995)
    return {
        "llama2 32000": llama,
        f"as Ziya's {ZIYA_PIECES}": _extend(llama, (folder / "chinese_sp.model").read_bytes()),
        "trained 32000": trained,
    }


def _extend(model: bytes, other: bytes) -> bytes:
    proto = pb2.ModelProto.FromString(model)
    known = {piece.piece for piece in proto.pieces}
    for piece in pb2.ModelProto.FromString(other).pieces:
        is_new = piece.type == piece.NORMAL and piece.piece not in known
        if is_new and len(proto.pieces) < ZIYA_PIECES:
            proto.pieces.add(piece=piece.piece, score=0.0)
    return proto.SerializeToString()


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)
