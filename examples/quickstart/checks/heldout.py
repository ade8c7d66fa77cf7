"""Scores held-out text, about diseases that training never named, with the exported model.

Everything here uses `transformers` and the exported folder, so the figures are for what a user
gets, not for the training code.
"""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import torch
import transformers

from examples.quickstart.checks import baselines

WINDOW, STRIDE = 256, 128  # all but a document's first tokens have a context of at least 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Bits per byte of held-out text, and baselines."""

    model: float
    unigram: float
    xz_alone: float
    xz_after_train: float
    """Each document compressed alone after the training text, the same context as the model's."""
    xz_after_all: float
    """All held-out text after the training text, so documents can also refer to each other."""
    num_bytes: int
    shared_length: int
    """Characters of the longest string that held-out text shares with training text."""
    shared_text: str


def read_texts(path: Path) -> list[str]:
    """The texts of a jsonl file."""
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def measure(hf_folder: Path, train_file: Path, heldout_file: Path) -> HeldOut:
    """Scores every document of a file separately."""
    transformers.utils.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(hf_folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(hf_folder, dtype=torch.float32).eval()
    train, heldout = read_texts(train_file), read_texts(heldout_file)
    end = tokenizer.eos_token_id

    def encode(texts: list[str]) -> list[list[int]]:
        return [tokenizer.encode(text, add_special_tokens=False) + [end] for text in texts]

    train_ids, heldout_ids = encode(train), encode(heldout)
    num_bytes = sum(len(text.encode()) for text in heldout)
    nats = sum(document_nats(model, [end, *ids]) for ids in heldout_ids)
    joined = "\n".join(train)
    xz = baselines.xz_bits_per_byte(joined, "\n".join(heldout))
    shared_length, shared_text = baselines.longest_shared_ngram(joined, "\n".join(heldout))
    return HeldOut(
        model=nats / math.log(2) / num_bytes,
        unigram=baselines.unigram_bits_per_byte(
            np.concatenate(train_ids), np.concatenate(heldout_ids), len(tokenizer), num_bytes
        ),
        xz_alone=xz.alone,
        xz_after_all=xz.given_train,
        xz_after_train=baselines.xz_bits_per_byte_of_documents(joined, heldout),
        num_bytes=num_bytes,
        shared_length=shared_length,
        shared_text=shared_text,
    )


@torch.no_grad()
def document_nats(model: torch.nn.Module, ids: list[int]) -> float:
    """Sum of the cross-entropy of ids[1:] in nats; each token counts once, in one window."""
    total, scored = 0.0, 1  # the next token to score
    for start in range(0, len(ids), STRIDE):
        window = torch.tensor([ids[start : start + WINDOW]])
        logits = model(window).logits[0, :-1].double()
        losses = torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="none")
        total += losses[scored - start - 1 :].sum().item()
        scored = start + window.shape[1]
        if scored >= len(ids):
            return total
    return total
