"""A tiny transformers model, its tokenizer and its checkpoint, for the tests of generation."""

import contextlib
import dataclasses
import functools
import io
import tempfile
from pathlib import Path

import sentencepiece
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from megatron_chimed.checkpoint.save import Snapshot, save_checkpoint
from megatron_chimed.engine import ParallelConfig, TensorShard
from megatron_chimed.engine.agreement import Agreement
from megatron_chimed.generation import open_session
from megatron_chimed.model import ModelConfig
from megatron_chimed.tokenizer import SentencePieceTokenizer, Tokenizer, train_byte_bpe

TEXTS = (
    "发热伴咳嗽三天，体温最高三十九度。",
    "the patient has a fever and a cough since three days",
)
# 512 rows in memory: at TP 2 the second rank holds true rows and padding.
VOCAB_SIZE = 340
# Lengths that differ a lot, one token among them.
PROMPTS = [[7], [5, 300, 12, 9, 77], [3 + 5 * i for i in range(33)], [339 - i for i in range(17)]]


def model_config() -> ModelConfig:
    return ModelConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        num_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        ffn_hidden_size=96,
        max_position_embeddings=128,
    )


@functools.cache
def reference_model() -> LlamaForCausalLM:
    """A random model with grouped-query attention; large weights keep the best token clear."""
    torch.manual_seed(11)
    ours = model_config()
    config = LlamaConfig(
        vocab_size=ours.vocab_size,
        hidden_size=ours.hidden_size,
        num_hidden_layers=ours.num_layers,
        num_attention_heads=ours.num_attention_heads,
        num_key_value_heads=ours.num_key_value_heads,
        intermediate_size=ours.ffn_hidden_size,
        max_position_embeddings=ours.max_position_embeddings,
        rms_norm_eps=ours.rms_norm_eps,
        initializer_range=0.15,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def reference_completion(prompt: list[int], num_tokens: int) -> tuple[int, ...]:
    """What transformers makes of one prompt alone, greedily."""
    ids = torch.tensor([prompt])
    out = reference_model().generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=num_tokens,
        do_sample=False,
        pad_token_id=0,
    )
    return tuple(out[0, len(prompt) :].tolist())


@functools.cache
def toy_tokenizer(vocab_size: int = VOCAB_SIZE) -> SentencePieceTokenizer:
    """Bytes for every character that is not in `TEXTS`."""
    stream = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 4),
        model_writer=stream,
        vocab_size=vocab_size,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        minloglevel=2,
    )
    return SentencePieceTokenizer(stream.getvalue())


def save_reference(root: Path, **changes) -> Path:
    """The reference model as a committed checkpoint with its tokenizer.

    Args:
        root: The folder of checkpoints.
        changes: Other content of the checkpoint.
    """
    tensors = {k: v for k, v in reference_model().state_dict().items() if "inv_freq" not in k}
    content = {
        "iteration": 0,
        "shards": [
            TensorShard(key=k, global_shape=tuple(v.shape), offset=(0,) * v.dim(), tensor=v)
            for k, v in tensors.items()
        ],
        "state": {},
        "config": {"model": dataclasses.asdict(model_config())},
        "tokenizer": {"tokenizer.model": toy_tokenizer().model_bytes},
    }
    snapshot = Snapshot(**(content | changes))
    return save_checkpoint(root, snapshot, agreement=Agreement(), run_id="toy")


@contextlib.contextmanager
def toy_session(checkpoint: Path, **parallel):
    """The checkpoint on one rank, without its tokenizer: all ids can be drawn."""
    with open_session(checkpoint, ParallelConfig(**parallel), world=(0, 1, 0)) as session:
        yield dataclasses.replace(session, tokenizer=None)


def byte_tokenizer() -> Tokenizer:
    """Byte-level BPE without merges: one token for each byte."""
    with tempfile.TemporaryDirectory() as folder:
        return train_byte_bpe(TEXTS, Path(folder, "tokenizer"), vocab_size=256)
