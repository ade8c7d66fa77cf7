"""Reads a tokenizer from a file or a Hugging Face folder that holds one.

A folder with a `tokenizer.model` is read with sentencepiece, even if it holds a `tokenizer.json`
too, which is then a conversion of it. Any other folder needs a `tokenizer.json` of byte-level BPE.

A folder may define added and special tokens in four files, and published folders sometimes
contradict themselves. All four are read and must agree: the ids go into data that outlive the
folder.
"""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from megatron_chimed.errors import ConfigError, DataError
from megatron_chimed.files import read_small
from megatron_chimed.tokenizer.byte_bpe import (
    CONFIG_NAME,
    JSON_NAME,
    MAP_NAME,
    SPECIAL_NAMES,
    ByteBpeTokenizer,
    usual_special,
)
from megatron_chimed.tokenizer.sentencepiece_tokenizer import SentencePieceTokenizer
from megatron_chimed.tokenizer.tokenizer import SpecialTokens, Tokenizer
from megatron_chimed.tokenizer.tokenizer_json import (
    AddedToken,
    ByteBpe,
    added_entries,
    parse_byte_bpe,
    read_object,
    read_tokenizer_json,
    steps_of,
    text_of,
)

MODEL_NAME = "tokenizer.model"
GENERATION_NAME = "generation_config.json"
ADDED_NAME = "added_tokens.json"
CHAT_TEMPLATE_KEY = "chat_template"


def load_tokenizer(path: str | os.PathLike) -> Tokenizer:
    """Loads a tokenizer.

    Args:
        path: A sentencepiece model file or a `tokenizer.json`, or a folder with `tokenizer.model`
            or `tokenizer.json` and the Hugging Face files that name special and added tokens.

    Raises:
        ConfigError: The path does not exist, there is no tokenizer, or files disagree.
        DataError: A file cannot be read, is malformed, or holds another kind of tokenizer.
    """
    path = Path(path)
    if not path.exists():
        raise ConfigError(
            f"tokenizer {str(path)!r} does not exist. Give a tokenizer.model or tokenizer.json "
            "file, or the Hugging Face folder that contains one."
        )
    if not path.is_dir():
        content = _read(path)
        if path.suffix == ".json":
            return _load_byte_bpe(path, {JSON_NAME: content})
        return SentencePieceTokenizer(content, source=str(path))
    if (path / MODEL_NAME).exists():
        return _load_sentencepiece_folder(path, _read(path / MODEL_NAME))
    if (path / JSON_NAME).exists():
        names = (JSON_NAME, CONFIG_NAME, MAP_NAME, ADDED_NAME, GENERATION_NAME)
        files = {name: _read(path / name) for name in names if (path / name).exists()}
        return _load_byte_bpe(path, files)
    folders = ("tokenizer", "iter_*/tokenizer", "checkpoints/iter_*/tokenizer")
    inside = [found for folder in folders for found in sorted(path.glob(folder))]
    if inside:
        raise ConfigError(
            f"{path} is a checkpoint or a run, not a tokenizer. Give the one inside it: "
            f"{inside[-1]}."
        )
    raise ConfigError(
        f"{path} holds no {MODEL_NAME} and no {JSON_NAME}. Copy the model's file into the folder: "
        f"{MODEL_NAME} of a sentencepiece tokenizer, {JSON_NAME} of byte-level BPE."
    )


def _load_sentencepiece_folder(folder: Path, model: bytes) -> SentencePieceTokenizer:
    config = _read_object(folder / CONFIG_NAME)
    claims = _merge_claims(folder, config, _read_object(folder / JSON_NAME))
    claimed = {token.text: token.index for token in claims}
    # Checks the claims against the model.
    plain = SentencePieceTokenizer(model, claimed, source=str(folder))
    added = {
        text: index
        for text, index in plain.added_tokens.items()
        if not plain.is_control(index) and text not in plain.symbols
    }
    stated = _read_object(folder / MAP_NAME)
    named = _named_ids(folder, MODEL_NAME, plain.find, config, stated)
    own = plain.special
    special = SpecialTokens(
        bos_id=named.get("bos_token", own.bos_id),
        eos_id=named.get("eos_token", own.eos_id),
        unk_id=named.get("unk_token", own.unk_id),
        pad_id=named.get("pad_token", own.pad_id),
        add_bos=bool(config.get("add_bos_token", named.get("bos_token", own.bos_id) is not None)),
    )
    return SentencePieceTokenizer(model, added, special=special, source=str(folder))


def _load_byte_bpe(path: Path, files: dict[str, bytes]) -> ByteBpeTokenizer:
    """A tokenizer from the content of its files by name.

    Args:
        path: The folder, or the tokenizer.json alone.
        files: Contents; without a tokenizer_config.json, the special tokens of well-known names.
    """
    folder, source = (path, path / JSON_NAME) if path.is_dir() else (path.parent, path)
    names = {name: str(source if name == JSON_NAME else folder / name) for name in files}
    raw, vocabulary = read_tokenizer_json(files[JSON_NAME], str(source))
    others = {name: content for name, content in files.items() if name != JSON_NAME}
    values = {name: read_object(content, names[name]) for name, content in others.items()}
    config = values.get(CONFIG_NAME, {})
    claims = _merge_claims(folder, config, raw) if path.is_dir() else []
    own = [text_of(entry) for entry in added_entries(raw, str(source))]
    extra = [token for token in claims if token.text not in own]
    content = parse_byte_bpe(files[JSON_NAME], raw, vocabulary, str(source), extra)
    stops = _generation_stops(folder, values.get(GENERATION_NAME, {}), content.num_ids)
    named = _named_ids(folder, JSON_NAME, content.find, config, values.get(MAP_NAME, {}))
    usual = usual_special({token.text: token.index for token in content.added})
    usual_eos = usual.eos_id if usual else None
    eos_id = named.get("eos_token", stops[0] if stops else usual_eos)
    if eos_id is None:
        raise ConfigError(
            f"{path} does not say what ends a sequence. Give the Hugging Face folder, with an "
            f"eos_token in its {CONFIG_NAME}."
        )
    bos_id = named.get("bos_token", usual.bos_id if usual and not config else None)
    special = SpecialTokens(
        bos_id=bos_id,
        eos_id=eos_id,
        unk_id=named.get("unk_token"),
        pad_id=named.get("pad_token"),
        add_bos=bos_id is not None and _adds_bos(config, raw, content.spelling(bos_id)),
    )
    _check_structure(path, content, special)
    if CHAT_TEMPLATE_KEY in config:  # it is the model's: an export writes that of its training
        kept = {key: value for key, value in config.items() if key != CHAT_TEMPLATE_KEY}
        files[CONFIG_NAME] = (json.dumps(kept, ensure_ascii=False, indent=2) + "\n").encode()
    return ByteBpeTokenizer(
        content, special=special, files=files, stop_ids=stops, source=str(source)
    )


def _check_structure(path: Path, content: ByteBpe, special: SpecialTokens) -> None:
    """Refuses an end of sequence that a text could spell."""
    structure = {token.index for token in content.added if not token.is_word}
    for name, index in (("bos", special.bos_id), ("eos", special.eos_id), ("pad", special.pad_id)):
        if index is not None and index not in structure:
            raise ConfigError(
                f"{path}: {name}_token {content.spelling(index)!r} is an ordinary entry of the "
                "vocabulary, so that text could spell it. Name an added token."
            )


def _merge_claims(
    folder: Path, config: dict[str, Any], tokenizer_json: dict[str, Any]
) -> list[AddedToken]:
    """All added tokens that the folder's files name, checked against each other."""
    known: dict[str, tuple[AddedToken, str]] = {}
    text_by_id: dict[int, tuple[str, str]] = {}
    for text, index, entry, file in _claims(folder, config, tokenizer_json):
        if not isinstance(text, str) or isinstance(index, bool) or not isinstance(index, int):
            raise DataError(f"{folder / file}: added token {text!r} with id {index!r}.")
        is_special = isinstance(entry, dict) and bool(entry.get("special"))
        token = AddedToken(text=text, index=index, is_special=is_special, is_word=False)
        known_token, known_file = known.setdefault(text, (token, file))
        known_text, other_file = text_by_id.setdefault(index, (text, file))
        if known_token.index != index:
            raise ConfigError(
                f"{folder}: added token {text!r} has id {known_token.index} in {known_file} and "
                f"{index} in {file}. Fix the wrong one."
            )
        if known_text != text:
            raise ConfigError(
                f"{folder}: id {index} is {known_text!r} in {other_file} and {text!r} in {file}. "
                "Fix the wrong one."
            )
    return [token for token, _ in known.values()]


def _claims(
    folder: Path, config: dict[str, Any], tokenizer_json: dict[str, Any]
) -> Iterator[tuple[Any, Any, Any, str]]:
    """Text, id, entry and file of each added token; flags are in the entry, if it has any."""
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise DataError(f"{folder}/{CONFIG_NAME}: added_tokens_decoder is not an object.")
    for text, index in _read_object(folder / ADDED_NAME).items():
        entry = decoder.get(str(index)) if isinstance(index, int) else None
        yield text, index, entry, ADDED_NAME
    for key, entry in decoder.items():
        index = int(key) if key.isdecimal() else key
        yield text_of(entry), index, entry, CONFIG_NAME
    for entry in added_entries(tokenizer_json, str(folder / JSON_NAME)):
        index = entry.get("id") if isinstance(entry, dict) else None
        yield text_of(entry), index, entry, JSON_NAME


def _named_ids(
    folder: Path,
    file: str,
    find: Callable[[str], int | None],
    config: dict[str, Any],
    stated: dict[str, Any],
) -> dict[str, int]:
    """The special ids that tokenizer_config.json or special_tokens_map.json name."""
    ids = {}
    for name in SPECIAL_NAMES:
        texts = [text_of(source[name]) for source in (config, stated) if source.get(name)]
        if texts[1:] not in ([], texts[:1]):
            raise ConfigError(
                f"{folder}: {name} is {text_of(config[name])!r} in {CONFIG_NAME} and "
                f"{text_of(stated[name])!r} in {MAP_NAME}. Fix the wrong one."
            )
        for text in texts[:1]:
            index = find(text) if isinstance(text, str) else None
            if index is None:
                raise ConfigError(
                    f"{folder}: {name} {text!r} is neither a piece of {file} nor an added token. "
                    f"Add it to {ADDED_NAME} or name another."
                )
            ids[name] = index
    return ids


def _adds_bos(config: dict[str, Any], raw: dict[str, Any], bos: str) -> bool:
    """Whether transformers prepends the begin of sequence: by a flag, or in tokenizer.json."""
    if config.get("add_bos_token") is not None:
        return bool(config["add_bos_token"])
    steps = steps_of(raw.get("post_processor"), "processors")
    singles = [step["single"] for step in steps if isinstance(step.get("single"), list)]
    return any({"SpecialToken": {"id": bos, "type_id": 0}} in single for single in singles)


def _generation_stops(folder: Path, generation: dict[str, Any], vocab_size: int) -> list[int]:
    """The ends of sequence of generation_config.json, of which there may be several."""
    value = generation.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(type(index) is not int or not 0 <= index < vocab_size for index in ids):
        raise DataError(
            f"{folder / GENERATION_NAME}: eos_token_id is {value!r}, but the tokenizer has "
            f"{vocab_size} ids. The files belong to different models."
        )
    return ids


def _read(path: Path) -> bytes:
    try:
        return read_small(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Restore the file.") from None


def _read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON object; a missing file counts as an empty one."""
    return read_object(_read(path), str(path)) if path.exists() else {}
