"""The tokenizer of a model, from and to Hugging Face folders."""

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

from megatron_chimed.checkpoint.reader import CheckpointReader
from megatron_chimed.config.model import ModelConfig
from megatron_chimed.conversion.audit import write_json
from megatron_chimed.conversion.hf_config import TOKEN_ID_KEYS, read_json_object
from megatron_chimed.conversion.hf_generation import EOS_KEY, SECTION, stop_ids
from megatron_chimed.data.templates import STORED_KEY, Template, stored_template
from megatron_chimed.errors import DataError
from megatron_chimed.tokenizer import Tokenizer, load_tokenizer
from megatron_chimed.tokenizer.saving import save_tokenizer

CHAT_TEMPLATE_NAME = "chat_template.jinja"
_CONFIG_NAME = "tokenizer_config.json"


def tokenizer_files(tokenizer: Tokenizer) -> dict[str, bytes]:
    """The files of a tokenizer by name, as a checkpoint holds them."""
    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(tokenizer, folder)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def with_padding(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with a padding id that is not the end of sequence; other ids are unchanged.

    If the end of sequence pads, masking padding in a loss masks the end of every answer, and
    transformers, which scores the last token that is not padding, scores the token before. Where
    the tokenizer has no other padding id, the unknown token pads.
    """
    if tokenizer.pad_id not in (None, tokenizer.eos_id):
        return tokenizer
    special = dataclasses.replace(tokenizer.special, pad_id=tokenizer.unk_id)
    return Tokenizer(tokenizer.model_bytes, tokenizer.added_tokens, special=special)


def imported_tokenizer(folder: Path, model: ModelConfig, notes: list[str]) -> Tokenizer | None:
    """The tokenizer of a Hugging Face folder; None and a note if it has none.

    Raises:
        DataError: It has more ids than the model.
    """
    if not (folder / "tokenizer.model").exists():
        notes.append("the folder has no tokenizer.model: the checkpoint holds weights only")
        return None
    tokenizer = load_tokenizer(folder)
    if tokenizer.vocab_size > model.known_vocab_size:
        raise DataError(
            f"the tokenizer of {folder} has {tokenizer.vocab_size} ids, the model embeds only "
            f"{model.vocab_size}: they do not belong together."
        )
    return tokenizer


def has_chat_template(folder: Path) -> bool:
    """Whether a Hugging Face folder has a chat template."""
    path = folder / _CONFIG_NAME
    config = read_json_object(path) if path.exists() else {}
    return bool(config.get("chat_template")) or (folder / CHAT_TEMPLATE_NAME).exists()


def export_tokenizer(
    reader: CheckpointReader,
    folder: Path,
    head: str,
    notes: list[str],
    *,
    with_chat_template: bool = True,
) -> dict[str, Any]:
    """Writes the tokenizer and its chat template, verified with transformers.

    Args:
        reader: Reader of the checkpoint.
        folder: Where to write.
        head: `lm` or `score`.
        notes: Remarks for the report are added.
        with_chat_template: Write a chat template if the model was trained with a template.

    Returns:
        Special ids: `bos_token_id`, `eos_token_id` (a list, if the model stops at several) and
        `pad_token_id`.

    Raises:
        CheckpointError: transformers would encode conversations differently than training did.
        DataError: transformers' tokenizer disagrees with ours.
    """
    if reader.tokenizer_folder is None:
        notes.append("the checkpoint has no tokenizer: the folder holds weights only")
        section = reader.config.get(SECTION) or {}
        ids = {key: section[key] for key in TOKEN_ID_KEYS if key in section}
        if ids.get("pad_token_id") is None:
            rows = "scores one row" if head == "score" else "generates for one row"
            notes.append(f"the padding id is unknown, so transformers {rows} at a time")
        return _with_all_stops(ids, reader)
    from megatron_chimed.tokenizer.transformers_check import check_transformers_agreement

    tokenizer = with_padding(load_tokenizer(reader.tokenizer_folder))
    save_tokenizer(tokenizer, folder)
    # Generation continues from the end of a row.
    _add_to_config(folder, {"padding_side": "left" if head == "lm" else "right"})
    check_transformers_agreement(folder)
    template = stored_template(reader.config.get(STORED_KEY), str(reader.directory))
    if template is not None and with_chat_template:
        _export_chat_template(folder, tokenizer, template)
        notes.append(f"its chat template gives the ids of template {template.name!r}")
    elif template is not None:
        notes.append(f"it has no chat template, as asked, and was trained with {template.name!r}")
    ids = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }
    return _with_all_stops(ids, reader)


def _with_all_stops(ids: dict[str, Any], reader: CheckpointReader) -> dict[str, Any]:
    first = ids.get(EOS_KEY)
    stops = list(stop_ids(reader.config, first if isinstance(first, int) else None))
    return ids | ({EOS_KEY: stops if len(stops) > 1 else stops[0]} if stops else {})


def _export_chat_template(folder: Path, tokenizer: Tokenizer, template: Template) -> None:
    from megatron_chimed.data.templates.jinja_export import chat_template
    from megatron_chimed.data.templates.transformers_check import check_chat_template

    text = chat_template(template, tokenizer)
    # The first is where transformers 5 looks, the second where versions before 4.50 do.
    (folder / CHAT_TEMPLATE_NAME).write_text(text, encoding="utf-8")
    _add_to_config(folder, {"chat_template": text})
    check_chat_template(folder, tokenizer, template)


def _add_to_config(folder: Path, entries: dict[str, Any]) -> None:
    path = folder / _CONFIG_NAME
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | entries)
