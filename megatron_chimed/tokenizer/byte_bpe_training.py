"""Trains a Qwen-like byte-level BPE, in seconds, for the demo and tests."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from megatron_chimed.errors import ConfigError, DataError, existing_output
from megatron_chimed.files import atomic_directory
from megatron_chimed.tokenizer.byte_bpe import CONFIG_NAME, JSON_NAME
from megatron_chimed.tokenizer.loading import load_tokenizer
from megatron_chimed.tokenizer.tokenizer import Tokenizer
from megatron_chimed.tokenizer.transformers_check import check_transformers_agreement

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
NUM_BYTES = 256
MAX_VOCAB_SIZE = 1_000_000
# Of Qwen: contractions, words, single digits, punctuation with line ends, runs of spaces.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_byte_bpe(
    texts: Iterable[str],
    output_folder: str | os.PathLike,
    *,
    vocab_size: int,
    added_tokens: Sequence[str] = (),
    overwrite: bool = False,
) -> Tokenizer:
    """Trains byte-level BPE and writes a folder that `load_tokenizer` reads.

    Like Qwen's: NFC, single digits, no begin of sequence; `<|endoftext|>` ends documents and
    `<|im_end|>` turns. The same texts in the same order give byte-identical files.

    Args:
        texts: Training texts.
        output_folder: Created; must not exist, or be empty, unless `overwrite` is set.
        vocab_size: Entries of the vocabulary, including the 256 bytes but no special or added
            tokens.
        added_tokens: Structure that a template writes, such as `<think>`; the ids follow those of
            the special tokens. No text gives them.
        overwrite: Replace an existing folder once the new one is complete.

    Returns:
        The tokenizer, as stored in the folder.

    Raises:
        ConfigError: `vocab_size` does not fit the texts, or `added_tokens` repeat.
        DataError: There is no text.
        OutputError: The folder exists.
    """
    if len({*added_tokens, *SPECIAL_TOKENS}) != len(added_tokens) + len(SPECIAL_TOKENS):
        raise ConfigError(
            f"added tokens repeat: {list(added_tokens)}. Give each once, and none of "
            f"{', '.join(SPECIAL_TOKENS)}, which every tokenizer of this kind has."
        )
    if not NUM_BYTES <= vocab_size <= MAX_VOCAB_SIZE:
        raise ConfigError(
            f"--vocab-size is {vocab_size}: set it from {NUM_BYTES}, one entry for each byte, to "
            f"{MAX_VOCAB_SIZE}."
        )
    trained = train_json(texts, vocab_size, added_tokens)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": SPECIAL_TOKENS[0],
        "pad_token": SPECIAL_TOKENS[-1],
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
    }
    try:
        with atomic_directory(output_folder, replace=overwrite) as temporary:
            (temporary / JSON_NAME).write_text(trained, encoding="utf-8")
            text = json.dumps(config, ensure_ascii=False, indent=2) + "\n"
            (temporary / CONFIG_NAME).write_text(text, encoding="utf-8")
            check_transformers_agreement(temporary)
    except FileExistsError:
        raise existing_output("--output", Path(output_folder)) from None
    return load_tokenizer(output_folder)


def train_json(texts: Iterable[str], vocab_size: int, added_tokens: Sequence[str]) -> str:
    """The content of a tokenizer.json; see `train_byte_bpe`.

    Raises:
        ConfigError: The texts do not give `vocab_size` entries.
        DataError: There is no text.
    """
    from tokenizers import (
        AddedToken,
        Regex,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        trainers,
    )
    from tokenizers import Tokenizer as Library

    library = Library(models.BPE())
    library.normalizer = normalizers.NFC()
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    is_blank = True

    def counted() -> Iterable[str]:
        nonlocal is_blank
        for text in texts:
            is_blank = is_blank and not text.strip()
            yield text

    library.train_from_iterator(counted(), trainer)
    if is_blank:
        raise DataError("there is no text to train a tokenizer on: every line is blank.")
    if (found := library.get_vocab_size()) < vocab_size:
        raise ConfigError(
            f"a vocabulary of {vocab_size} does not fit the texts: there is not enough text to "
            f"learn so many entries; the largest that this text gives is {found}: set --vocab-size "
            "to that or less, or use more text."
        )
    library.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL_TOKENS])
    structure = [AddedToken(text, special=False, normalized=False) for text in added_tokens]
    library.add_tokens(structure)
    return library.to_str(pretty=True) + "\n"
