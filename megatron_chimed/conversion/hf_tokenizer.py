"""The tokenizer of a model, from and to Hugging Face folders."""

import dataclasses
import json
import tempfile
from collections.abc import Iterator, Sequence
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
from megatron_chimed.tokenizer.byte_bpe import JSON_NAME
from megatron_chimed.tokenizer.saving import MODEL_NAME, save_tokenizer
from megatron_chimed.tokenizer.tokenizer_json import KNOWN

CHECKED_CHARACTERS = 5_000_000  # of the user's texts: about 10 s
CHAT_TEMPLATE_NAME = "chat_template.jinja"
_CONFIG_NAME = "tokenizer_config.json"
_OTHERS = ("*.tiktoken", "vocab.json", "merges.txt", "vocab.txt", "spiece.model")
"""Files of tokenizers beside which a model of ours has a file that is read."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerExport:
    """What an exported folder holds of the tokenizer."""

    with_files: bool = True
    """False: neither tokenizer nor chat template, only the special ids in the configs."""

    with_chat_template: bool = True
    """Write a chat template if the model was trained with a template."""

    texts: Path | None = None
    """A UTF-8 file on whose lines transformers must give our ids too; None: on generated texts."""


def tokenizer_files(tokenizer: Tokenizer) -> dict[str, bytes]:
    """The files of a tokenizer by name, as a checkpoint holds them."""
    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(tokenizer, folder, for_transformers=False)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def with_padding(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with a padding id that is not the end of sequence; other ids are unchanged.

    If the end of sequence pads, masking padding in a loss masks the end of every answer, and
    transformers, which scores the last token that is not padding, scores the token before. Where
    the tokenizer has no other padding id, the unknown token pads; without one, a special token that
    ends nothing.

    Raises:
        DataError: It has none of them.
    """
    if tokenizer.pad_id not in (None, tokenizer.eos_id):
        return tokenizer
    pad_id = _spare_id(tokenizer) if tokenizer.unk_id is None else tokenizer.unk_id
    return tokenizer.with_special(dataclasses.replace(tokenizer.special, pad_id=pad_id))


def _spare_id(tokenizer: Tokenizer) -> int:
    """A special id that is named after padding or reserved, and ends nothing.

    Raises:
        DataError: There is none.
    """
    used = (tokenizer.bos_id, *tokenizer.stop_ids)
    spare = [
        index
        for word in ("pad", "reserved")
        for text, index in tokenizer.added_tokens.items()
        if word in text and tokenizer.is_special(index) and index not in used
    ]
    if not spare:
        raise DataError(
            "the tokenizer has no special token for padding but its end of sequence, which would "
            "mask the ends of answers. Add one, and name it pad_token in tokenizer_config.json."
        )
    return spare[0]


def imported_tokenizer(folder: Path, model: ModelConfig, notes: list[str]) -> Tokenizer | None:
    """The tokenizer of a Hugging Face folder; None and a note if it has none.

    Raises:
        DataError: It has more ids than the model, or is of a kind that is not read.
    """
    if not any((folder / name).exists() for name in (MODEL_NAME, JSON_NAME)):
        others = [path.name for name in _OTHERS for path in sorted(folder.glob(name))]
        if others:
            raise DataError(
                f"{folder} has its tokenizer in {', '.join(others)}, which is not read; {KNOWN}. "
                "Bring that file of the same model, or remove those to import weights only."
            )
        notes.append(
            f"the folder has no {MODEL_NAME} and no {JSON_NAME}: the checkpoint holds weights only"
        )
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
    export: TokenizerExport,
) -> dict[str, Any]:
    """Writes the tokenizer and its chat template, verified with transformers.

    Args:
        reader: Reader of the checkpoint.
        folder: Where to write.
        head: `lm` or `score`.
        notes: Remarks for the report are added.
        export: What to write.

    Returns:
        Special ids: `bos_token_id`, `eos_token_id` (a list, if the model stops at several) and
        `pad_token_id`.

    Raises:
        CheckpointError: transformers would encode conversations differently than training did.
        DataError: transformers' tokenizer disagrees with ours, or none could agree.
    """
    if reader.tokenizer_folder is None:
        notes.append("the checkpoint has no tokenizer: the folder holds weights only")
        section = reader.config.get(SECTION) or {}
        ids = {key: section[key] for key in TOKEN_ID_KEYS if key in section}
        if ids.get("pad_token_id") is None:
            rows = "scores one row" if head == "score" else "generates for one row"
            notes.append(f"the padding id is unknown, so transformers {rows} at a time")
        return _with_all_stops(ids, reader)
    tokenizer = with_padding(load_tokenizer(reader.tokenizer_folder))
    if export.with_files:
        _write_files(reader, folder, tokenizer, head, notes, export)
    else:
        notes.append("the folder holds weights only, as asked: no tokenizer and no chat template")
    ids = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }
    return _with_all_stops(ids, reader, tokenizer.stop_ids)


def _write_files(
    reader: CheckpointReader,
    folder: Path,
    tokenizer: Tokenizer,
    head: str,
    notes: list[str],
    export: TokenizerExport,
) -> None:
    from megatron_chimed.tokenizer.transformers_check import check_transformers_agreement

    save_tokenizer(tokenizer, folder)
    # Generation continues from the end of a row.
    _add_to_config(folder, {"padding_side": "left" if head == "lm" else "right"})
    check_transformers_agreement(folder)
    if export.texts is not None:
        check_transformers_agreement(folder, _lines(export.texts))
    template = stored_template(reader.config.get(STORED_KEY), str(reader.directory))
    if template is not None and export.with_chat_template:
        _export_chat_template(folder, tokenizer, template)
        notes.append(f"its chat template gives the ids of template {template.name!r}")
    elif template is not None:
        notes.append(f"it has no chat template, as asked, and was trained with {template.name!r}")


def _lines(path: Path) -> Iterator[str]:
    """The first lines of a text file, `CHECKED_CHARACTERS` of them at most."""
    left = CHECKED_CHARACTERS
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                yield line.rstrip("\n")
                left -= len(line)
                if left <= 0:
                    return
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"--check-texts {path} cannot be read: {error}. Give a UTF-8 text file."
        ) from error


def _with_all_stops(
    ids: dict[str, Any], reader: CheckpointReader, known: Sequence[int] = ()
) -> dict[str, Any]:
    first = ids.get(EOS_KEY)
    stops = list(stop_ids(reader.config, known or ([first] if isinstance(first, int) else [])))
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
