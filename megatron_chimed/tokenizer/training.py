"""Trains a LLaMA-like sentencepiece model: for the quickstart and for tests, in seconds."""

import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece

from megatron_chimed.errors import ConfigError, DataError, existing_output
from megatron_chimed.files import atomic_directory
from megatron_chimed.tokenizer.agreement import check_transformers_agreement
from megatron_chimed.tokenizer.tokenizer import SpecialTokens, Tokenizer

MAX_TEXT_BYTES = 1 << 24  # sentencepiece silently skips texts longer than its default of 4192
CHARACTER_COVERAGE = 0.9995  # sentencepiece's advice for scripts with many characters
QUIET = 2  # sentencepiece's level for errors alone


def train_tokenizer(
    texts: Iterable[str],
    output_folder: str | os.PathLike,
    *,
    vocab_size: int,
    added_tokens: Sequence[str] = (),
    character_coverage: float = CHARACTER_COVERAGE,
    overwrite: bool = False,
) -> Tokenizer:
    """Trains a BPE model with byte fallback and writes a folder that `load_tokenizer` reads.

    As LLaMA's: no normalisation, single digits, `<unk>` 0, `<s>` 1, `</s>` 2, no padding piece. The
    same texts in the same order give the same bytes.

    Args:
        texts: Training texts, each one line or more.
        output_folder: Made; must not exist or be empty, but for `overwrite`.
        vocab_size: Pieces of the model, the 3 control and 256 byte pieces included, added tokens
            not.
        added_tokens: Literal tokens that get the ids behind the model's pieces.
        character_coverage: Share of the texts' characters that get a piece of their own; the rarest
            others are spelled in bytes.
        overwrite: Replace a folder that is there once the new one is complete.

    Returns:
        The tokenizer, as the folder holds it.

    Raises:
        ConfigError: `vocab_size` does not fit the texts, or `added_tokens` repeat.
        DataError: No text.
        OutputError: The folder is in use.
    """
    if len(set(added_tokens)) != len(added_tokens):
        raise ConfigError(f"added tokens repeat: {list(added_tokens)}. Name each once.")
    lines = [line for text in texts for line in text.splitlines() if line.strip()]
    if not lines:
        raise DataError("there is no text to train a tokenizer on: every line is blank.")
    model = train_model(lines, vocab_size=vocab_size, character_coverage=character_coverage)
    plain = Tokenizer(model)
    added = {text: plain.model_size + i for i, text in enumerate(added_tokens)}
    special = SpecialTokens(
        bos_id=plain.bos_id, eos_id=plain.eos_id, unk_id=plain.unk_id, pad_id=None, add_bos=False
    )
    tokenizer = Tokenizer(model, added, special=special, source=str(output_folder))
    try:
        with atomic_directory(output_folder, replace=overwrite) as temporary:
            tokenizer.save(temporary)
            check_transformers_agreement(temporary)
    except FileExistsError:
        raise existing_output("--output", Path(output_folder)) from None
    return tokenizer


def train_model(lines: Sequence[str], *, vocab_size: int, character_coverage: float) -> bytes:
    """The sentencepiece model alone, as the bytes of a tokenizer.model; see `train_tokenizer`.

    Raises:
        ConfigError: `vocab_size` does not fit the lines.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            vocab_size=vocab_size,
            model_type="bpe",
            byte_fallback=True,
            character_coverage=character_coverage,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            max_sentence_length=MAX_TEXT_BYTES,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            num_threads=1,
            minloglevel=QUIET,
        )
    except RuntimeError as error:
        raise ConfigError(
            f"sentencepiece cannot train {vocab_size} pieces on {len(lines)} lines: {error} Change "
            "vocab_size or character_coverage, or use more text."
        ) from None
    return model.getvalue()
