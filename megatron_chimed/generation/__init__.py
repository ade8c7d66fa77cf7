"""Generating text: sampling, batched decoding with a KV cache, models opened from checkpoints."""

from megatron_chimed.generation.decode import Completion, Listener, cache_bytes, generate
from megatron_chimed.generation.rows import read_rows, write_rows
from megatron_chimed.generation.sampling import SamplingConfig, prompt_seed
from megatron_chimed.generation.session import Session, open_session
from megatron_chimed.generation.text import TextStream

__all__ = [
    "Completion",
    "Listener",
    "SamplingConfig",
    "Session",
    "TextStream",
    "cache_bytes",
    "generate",
    "open_session",
    "prompt_seed",
    "read_rows",
    "write_rows",
]
