"""Trains a LLaMA-like sentencepiece model, in seconds, for the quickstart and tests."""

import io
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece

from megatron_chimed.errors import ConfigError, DataError, existing_output
from megatron_chimed.files import atomic_directory
from megatron_chimed.tokenizer.saving import save_tokenizer
from megatron_chimed.tokenizer.sentencepiece_tokenizer import SentencePieceTokenizer
from megatron_chimed.tokenizer.tokenizer import SpecialTokens
from megatron_chimed.tokenizer.transformers_check import check_transformers_agreement

MAX_TEXT_BYTES = 1 << 24  # sentencepiece silently skips texts longer than its default of 4192
CHARACTER_COVERAGE = 0.9995  # recommended by sentencepiece for scripts with many characters
MIN_COVERAGE = 0.98  # sentencepiece accepts no lower value
MAX_VOCAB_SIZE = 1_000_000
CONTROL_PIECES = ("<unk>", "<s>", "</s>")
CONTROL_AND_BYTES = len(CONTROL_PIECES) + 256
_TOO_SMALL = re.compile(r"smaller than required_chars\. \d+ vs (\d+)")
_TOO_LARGE = re.compile(r"Vocabulary size too high \(\d+\)\. Please set it to a value <= (\d+)")
QUIET = 2  # sentencepiece's level: errors only


def train_tokenizer(
    texts: Iterable[str],
    output_folder: str | os.PathLike,
    *,
    vocab_size: int,
    added_tokens: Sequence[str] = (),
    character_coverage: float = CHARACTER_COVERAGE,
    overwrite: bool = False,
) -> SentencePieceTokenizer:
    """Trains a BPE model with byte fallback and writes a folder that `load_tokenizer` reads.

    Like LLaMA's: no normalisation, single digits, `<unk>` 0, `<s>` 1, `</s>` 2, no padding piece.
    The same texts in the same order give byte-identical files.

    Args:
        texts: Training texts of one or more lines each.
        output_folder: Created; must not exist, or be empty, unless `overwrite` is set.
        vocab_size: Pieces of the model, including the 3 control and 256 byte pieces but no added
            tokens.
        added_tokens: Literal tokens that get the ids after the model's pieces.
        character_coverage: Share of the texts' characters that get a piece of their own; the
            rarest ones are spelled in bytes.
        overwrite: Replace an existing folder once the new one is complete.

    Returns:
        The tokenizer, as stored in the folder.

    Raises:
        ConfigError: `vocab_size` does not fit the texts, or `added_tokens` repeat.
        DataError: There is no text.
        OutputError: The folder exists.
    """
    if len(set(added_tokens)) != len(added_tokens):
        raise ConfigError(f"added tokens repeat: {list(added_tokens)}. Give each once.")
    if reserved := set(added_tokens) & set(CONTROL_PIECES):
        raise ConfigError(
            f"added token {min(reserved)} is a control piece, which every model of this kind has. "
            "Remove it."
        )
    lines = [line for text in texts for line in text.splitlines() if line.strip()]
    if not lines:
        raise DataError("there is no text to train a tokenizer on: every line is blank.")
    model = train_model(lines, vocab_size=vocab_size, character_coverage=character_coverage)
    plain = SentencePieceTokenizer(model)
    added = {text: plain.model_size + i for i, text in enumerate(added_tokens)}
    special = SpecialTokens(
        bos_id=plain.bos_id, eos_id=plain.eos_id, unk_id=plain.unk_id, pad_id=None, add_bos=False
    )
    tokenizer = SentencePieceTokenizer(model, added, special=special, source=str(output_folder))
    try:
        with atomic_directory(output_folder, replace=overwrite) as temporary:
            save_tokenizer(tokenizer, temporary)
            check_transformers_agreement(temporary)
    except FileExistsError:
        raise existing_output("--output", Path(output_folder)) from None
    return tokenizer


def train_model(lines: Sequence[str], *, vocab_size: int, character_coverage: float) -> bytes:
    """The sentencepiece model alone, as the bytes of a tokenizer.model; see `train_tokenizer`.

    Raises:
        ConfigError: `vocab_size` does not fit the lines, or a value is out of range.
    """
    if not 1 <= vocab_size <= MAX_VOCAB_SIZE:
        raise ConfigError(f"--vocab-size is {vocab_size}: set it from 1 to {MAX_VOCAB_SIZE}.")
    if not MIN_COVERAGE <= character_coverage <= 1.0:
        raise ConfigError(
            f"--character-coverage is {character_coverage}: set it from {MIN_COVERAGE} to 1."
        )
    try:
        return _train(lines, vocab_size, character_coverage)
    except RuntimeError as error:
        what = f"a vocabulary of {vocab_size} does not fit {len(lines):,} lines"
        if found := _TOO_SMALL.search(str(error)):
            least = int(found[1])
            raise ConfigError(
                f"{what}. {_smallest(least)}: set --vocab-size to that or more, or use a lower "
                f"--character-coverage than {character_coverage:g} (down to {MIN_COVERAGE}), so "
                "that more of the rare characters are spelled in bytes."
            ) from None
        if found := _TOO_LARGE.search(str(error)):
            least = _least(lines, character_coverage)
            raise ConfigError(
                f"{what}: there is not enough text to learn so many pieces. {_smallest(least)}; "
                f"the largest that this text gives is {found[1]}: set --vocab-size to that or "
                "less, or use more text."
            ) from None
        raise ConfigError(
            f"{what}: sentencepiece says {str(error).strip()!r}. Change --vocab-size or "
            "--character-coverage, or use more text."
        ) from None


def _smallest(least: int) -> str:
    """States the smallest vocabulary and its composition."""
    return (
        f"The smallest vocabulary is {least}: 3 control pieces, 256 bytes and "
        f"{least - CONTROL_AND_BYTES:,} characters"
    )


def _least(lines: Sequence[str], character_coverage: float) -> int:
    """The smallest vocabulary of a text, from the error of sentencepiece for one too small."""
    try:
        _train(lines, CONTROL_AND_BYTES, character_coverage)
    except RuntimeError as error:
        if found := _TOO_SMALL.search(str(error)):
            return int(found[1])
    return CONTROL_AND_BYTES


def _train(lines: Sequence[str], vocab_size: int, character_coverage: float) -> bytes:
    """The bytes of the model; sentencepiece raises RuntimeError."""
    model = io.BytesIO()
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
    return model.getvalue()
