"""The generation settings of a Hugging Face model: its `generation_config.json`, preserved.

A checkpoint holds it in its config.json, every stage that starts from the checkpoint passes it on,
and an export writes it with the ids of the exported tokenizer. A model may stop at several ids, and
does not stop where one of them is lost.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_chimed.checkpoint.reader import CheckpointReader, newest_checkpoint
from megatron_chimed.conversion.hf_config import TOKEN_ID_KEYS, read_json_object
from megatron_chimed.errors import CheckpointError

SECTION = "hugging_face"
"""Key of a checkpoint's config.json: special ids of the source, and these settings."""
SETTINGS_KEY = "generation_config"
FAMILY_KEY = "model_type"
"""Of the family of the source, where it does not follow from the model's options."""
FILE_NAME = "generation_config.json"
EOS_KEY = "eos_token_id"


def imported_section(
    folder: Path, raw: Mapping[str, Any], vocab_size: int
) -> tuple[dict[str, Any], list[str]]:
    """The section that a checkpoint keeps of a Hugging Face folder, and all problems with it.

    Args:
        folder: Its generation_config.json is read where there is one.
        raw: Its parsed config.json.
        vocab_size: Size of the model's vocabulary.

    Raises:
        DataError: The file is not a JSON object.
    """
    path = folder / FILE_NAME
    has_file = path.exists() or path.is_symlink()
    settings = read_json_object(path) if has_file else {}
    problems = []
    section: dict[str, Any] = {}
    for name, source, kept in (("config.json", raw, section), (FILE_NAME, settings, settings)):
        for key in TOKEN_ID_KEYS:
            value = source.get(key)
            ids: list[Any] = value if isinstance(value, list) and key == EOS_KEY else [value]
            if any(type(i) is not int for i in ids) and value is not None:
                problems.append(f"{key} of {name} is {value!r}, not an id")
            elif key == EOS_KEY and any(i is not None and not 0 <= i < vocab_size for i in ids):
                problems.append(f"{key} of {name} is {value!r}, but the model has {vocab_size} ids")
            elif value is None or not all(0 <= i < vocab_size for i in ids):
                kept.pop(key, None)  # -1 and ids past the last one are used for "none"
            else:
                kept[key] = value
    if has_file or isinstance(section.get(EOS_KEY), list):
        # Without it, transformers uses the ids of config.json.
        settings.setdefault(EOS_KEY, section.get(EOS_KEY))
        section[SETTINGS_KEY] = settings
    return section, problems


def inherited_section(*sources: str | Path | None) -> dict[str, Any]:
    """The section of the first existing checkpoint, as an entry of a config.json.

    Args:
        sources: Checkpoints, folders of them, or runs; None is skipped.

    Returns:
        Empty if no checkpoint has a section. One that cannot be read counts as having none: loading
        its weights will fail.
    """
    for source in filter(None, sources):
        try:
            section = CheckpointReader(newest_checkpoint(source)).config.get(SECTION)
        except CheckpointError:
            continue
        return {SECTION: section} if section else {}
    return {}


def stop_ids(config: Mapping[str, Any], tokenizer_ids: Sequence[int]) -> tuple[int, ...]:
    """Ids at which a completion ends: the tokenizer's, end of sequence first, then the source's.

    Args:
        config: The checkpoint's config.json.
        tokenizer_ids: `stop_ids` of the tokenizer; empty without a tokenizer.
    """
    section = config.get(SECTION) or {}
    settings = section.get(SETTINGS_KEY) or ({} if tokenizer_ids else section)
    listed = settings.get(EOS_KEY)
    ids = [*tokenizer_ids, *(listed if isinstance(listed, list) else [listed])]
    return tuple(dict.fromkeys(i for i in ids if i is not None))


def exported_settings(config: Mapping[str, Any], token_ids: Mapping[str, Any]) -> dict[str, Any]:
    """The `generation_config.json` of an export.

    Args:
        config: The checkpoint's config.json.
        token_ids: Of the exported tokenizer.
    """
    section = config.get(SECTION) or {}
    # With this key, older versions of transformers derive the file from config.json again.
    settings = dict(section.get(SETTINGS_KEY) or {})
    settings.pop("_from_model_config", None)
    settings |= {key: ids for key, ids in token_ids.items() if ids is not None}
    return settings
