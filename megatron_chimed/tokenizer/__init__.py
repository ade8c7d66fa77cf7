"""sentencepiece models with added tokens, as the LLaMA family uses them."""

from megatron_chimed.tokenizer.bpe_training import train_tokenizer
from megatron_chimed.tokenizer.loading import load_tokenizer
from megatron_chimed.tokenizer.saving import save_tokenizer
from megatron_chimed.tokenizer.tokenizer import SpecialTokens, Tokenizer
from megatron_chimed.tokenizer.transformers_check import check_transformers_agreement

__all__ = [
    "SpecialTokens",
    "Tokenizer",
    "check_transformers_agreement",
    "load_tokenizer",
    "save_tokenizer",
    "train_tokenizer",
]
