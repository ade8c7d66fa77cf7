"""Reads a tokenizer from a `tokenizer.model` file or a Hugging Face folder that holds one.

A folder may define added and special tokens in four files, and published folders sometimes
contradict themselves. All four are read and must agree: the ids go into data that outlive the
folder.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_chimed.errors import ConfigError, DataError
from megatron_chimed.files import read_small
from megatron_chimed.tokenizer.tokenizer import SpecialTokens, Tokenizer

MODEL_NAME = "tokenizer.model"
SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")


def load_tokenizer(path: str | os.PathLike) -> Tokenizer:
    """Loads a tokenizer.

    Args:
        path: A sentencepiece model file, or a folder with `tokenizer.model` and, where there are
            added tokens, the Hugging Face files that name them.

    Raises:
        ConfigError: The path does not exist, there is no sentencepiece model, or files disagree.
        DataError: A file cannot be read, or one of the folder's JSON files is malformed.
    """
    path = Path(path)
    if not path.exists():
        raise ConfigError(
            f"tokenizer {str(path)!r} does not exist. Give a tokenizer.model file, or the Hugging "
            "Face folder that contains one."
        )
    if not path.is_dir():
        return Tokenizer(_read(path), source=str(path))
    model_path = path / MODEL_NAME
    if not model_path.exists():
        folders = ("tokenizer", "iter_*/tokenizer", "checkpoints/iter_*/tokenizer")
        inside = [found for folder in folders for found in sorted(path.glob(folder))]
        if inside:
            raise ConfigError(
                f"{path} is a checkpoint or a run, not a tokenizer. Give the one inside it: "
                f"{inside[-1]}."
            )
        raise ConfigError(
            f"{path} holds no {MODEL_NAME}: ids come from sentencepiece, and a tokenizer.json "
            "alone is not enough. Copy the model's tokenizer.model into the folder."
        )
    return _load_folder(path, _read(model_path))


def _load_folder(folder: Path, model: bytes) -> Tokenizer:
    config = _read_object(folder / "tokenizer_config.json")
    named = _read_object(folder / "special_tokens_map.json")
    claimed = _merge_claims(folder, config)
    plain = Tokenizer(model, claimed, source=str(folder))  # checks the claims against the model
    added = {
        text: index
        for text, index in plain.added_tokens.items()
        if not plain.is_control(index) and text not in plain.symbols
    }
    special = _read_special(folder, plain, config, named)
    return Tokenizer(model, added, special=special, source=str(folder))


def _merge_claims(folder: Path, config: dict[str, Any]) -> dict[str, int]:
    """All added tokens and ids that the folder's files name, checked against each other."""
    id_of: dict[str, tuple[int, str]] = {}
    text_of: dict[int, tuple[str, str]] = {}
    for text, index, file in _claims(folder, config):
        if not isinstance(text, str) or isinstance(index, bool) or not isinstance(index, int):
            raise DataError(f"{folder / file}: added token {text!r} with id {index!r}.")
        known_index, known_file = id_of.setdefault(text, (index, file))
        known_text, other_file = text_of.setdefault(index, (text, file))
        if known_index != index:
            raise ConfigError(
                f"{folder}: added token {text!r} has id {known_index} in {known_file} and "
                f"{index} in {file}. Fix the wrong one."
            )
        if known_text != text:
            raise ConfigError(
                f"{folder}: id {index} is {known_text!r} in {other_file} and {text!r} in {file}. "
                "Fix the wrong one."
            )
    return {text: index for text, (index, _) in id_of.items()}


def _claims(folder: Path, config: dict[str, Any]) -> Iterator[tuple[Any, Any, str]]:
    for text, index in _read_object(folder / "added_tokens.json").items():
        yield text, index, "added_tokens.json"
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise DataError(f"{folder}/tokenizer_config.json: added_tokens_decoder is not an object.")
    for key, entry in decoder.items():
        index = int(key) if key.isdecimal() else key
        yield _content(entry), index, "tokenizer_config.json"
    for entry in _read_object(folder / "tokenizer.json").get("added_tokens") or []:
        index = entry.get("id") if isinstance(entry, dict) else None
        yield _content(entry), index, "tokenizer.json"


def _read_special(
    folder: Path, tokenizer: Tokenizer, config: dict[str, Any], named: dict[str, Any]
) -> SpecialTokens:
    ids = {
        "bos_token": tokenizer.bos_id,
        "eos_token": tokenizer.eos_id,
        "unk_token": tokenizer.unk_id,
        "pad_token": tokenizer.pad_id,
    }
    for name in SPECIAL_NAMES:
        texts = [_content(source[name]) for source in (config, named) if source.get(name)]
        if texts[1:] not in ([], texts[:1]):
            raise ConfigError(
                f"{folder}: {name} is {_content(config[name])!r} in tokenizer_config.json and "
                f"{_content(named[name])!r} in special_tokens_map.json. Fix the wrong one."
            )
        if texts:
            ids[name] = _special_id(folder, tokenizer, name, texts[0])
    return SpecialTokens(
        bos_id=ids["bos_token"],
        eos_id=ids["eos_token"],
        unk_id=ids["unk_token"],
        pad_id=ids["pad_token"],
        add_bos=bool(config.get("add_bos_token", ids["bos_token"] is not None)),
    )


def _special_id(folder: Path, tokenizer: Tokenizer, name: str, text: Any) -> int:
    index = tokenizer.find(text) if isinstance(text, str) else None
    if index is None:
        raise ConfigError(
            f"{folder}: {name} {text!r} is neither a piece of {MODEL_NAME} nor an added token. "
            "Add it to added_tokens.json or name another."
        )
    return index


def _content(entry: Any) -> Any:
    """The text of a token, which is written as a text or as an object with `content`."""
    return entry.get("content") if isinstance(entry, dict) else entry


def _read(path: Path) -> bytes:
    try:
        return read_small(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Restore the file.") from None


def _read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON object; a missing file counts as an empty one."""
    if not path.exists():
        return {}
    try:
        value = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON: {error}. Restore the file.") from None
    if not isinstance(value, dict):
        raise DataError(f"{path} holds a {type(value).__name__}, not a JSON object.")
    return value
