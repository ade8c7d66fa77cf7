"""sentencepiece models with added tokens, as the LLaMA family uses them."""

from megatron_chimed.tokenizer.agreement import check_transformers_agreement
from megatron_chimed.tokenizer.loading import load_tokenizer
from megatron_chimed.tokenizer.tokenizer import SpecialTokens, Tokenizer
from megatron_chimed.tokenizer.training import train_tokenizer

__all__ = [
    "SpecialTokens",
    "Tokenizer",
    "check_transformers_agreement",
    "load_tokenizer",
    "train_tokenizer",
]
