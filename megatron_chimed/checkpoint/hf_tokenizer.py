"""The tokenizer that travels with a model, from and to Hugging Face folders."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from megatron_chimed.checkpoint.reader import CheckpointReader
from megatron_chimed.errors import DataError
from megatron_chimed.model.config import ModelConfig
from megatron_chimed.tokenizer import Tokenizer, load_tokenizer


def tokenizer_files(tokenizer: Tokenizer) -> dict[str, bytes]:
    """The files of a tokenizer's folder by name, as a checkpoint holds them."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def with_padding(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer of a reward model: the same ids, and one to pad with.

    transformers scores the last token that is not padding. An answer ends with the end of sequence,
    which therefore cannot be it; where the tokenizer has no other, the unknown token pads.
    """
    if tokenizer.pad_id not in (None, tokenizer.eos_id):
        return tokenizer
    special = dataclasses.replace(tokenizer.special, pad_id=tokenizer.unk_id)
    return Tokenizer(tokenizer.model_bytes, tokenizer.added_tokens, special=special)


def imported_tokenizer(folder: Path, model: ModelConfig, notes: list[str]) -> Tokenizer | None:
    """The tokenizer of a Hugging Face folder; None, and a note, where it has none.

    Raises:
        DataError: It has more ids than the model.
    """
    if not (folder / "tokenizer.model").is_file():
        notes.append("the folder has no tokenizer.model: the checkpoint holds weights only")
        return None
    tokenizer = load_tokenizer(folder)
    if tokenizer.vocab_size > model.vocab_size:
        raise DataError(
            f"the tokenizer of {folder} has {tokenizer.vocab_size} ids, the model embeds only "
            f"{model.vocab_size}: they do not belong together."
        )
    return tokenizer


def export_tokenizer(
    reader: CheckpointReader, folder: Path, model: ModelConfig, notes: list[str]
) -> dict[str, int | None]:
    """Writes the tokenizer, proves that transformers reads it as we do, gives its special ids."""
    if reader.tokenizer_folder is None:
        notes.append("the checkpoint has no tokenizer: the folder holds weights only")
        ids: dict[str, Any] = dict(reader.config.get("hugging_face", {}))
        if model.head == "score" and ids.get("pad_token_id") is None:
            notes.append("nothing says which id pads, so transformers scores one row at a time")
        return ids
    from megatron_chimed.tokenizer.agreement import check_transformers_agreement

    tokenizer = load_tokenizer(reader.tokenizer_folder)
    if model.head == "score":
        tokenizer = with_padding(tokenizer)
    tokenizer.save(folder)
    check_transformers_agreement(folder)
    return {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }
