"""Tokenizers: sentencepiece as of LLaMA, byte-level BPE as of Qwen and Llama 3."""

from megatron_chimed.tokenizer.bpe_training import train_tokenizer
from megatron_chimed.tokenizer.byte_bpe import ByteBpeTokenizer
from megatron_chimed.tokenizer.byte_bpe_training import train_byte_bpe
from megatron_chimed.tokenizer.loading import load_tokenizer
from megatron_chimed.tokenizer.saving import save_tokenizer
from megatron_chimed.tokenizer.sentencepiece_tokenizer import SentencePieceTokenizer
from megatron_chimed.tokenizer.tokenizer import SpecialTokens, Tokenizer
from megatron_chimed.tokenizer.transformers_check import check_transformers_agreement

__all__ = [
    "ByteBpeTokenizer",
    "SentencePieceTokenizer",
    "SpecialTokens",
    "Tokenizer",
    "check_transformers_agreement",
    "load_tokenizer",
    "save_tokenizer",
    "train_byte_bpe",
    "train_tokenizer",
]
