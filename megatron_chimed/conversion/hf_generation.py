"""How a model of Hugging Face's is generated with: its `generation_config.json`, kept for good.

A checkpoint holds it in its config.json, every stage that starts from the checkpoint hands it on,
and an export writes it again with the ids of the tokenizer beside it. A model may stop at several
ids, and loses its end where one of them is forgotten.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_chimed.checkpoint.reader import CheckpointReader, newest_checkpoint
from megatron_chimed.conversion.hf_config import TOKEN_ID_KEYS, read_json_object
from megatron_chimed.errors import CheckpointError

SECTION = "hugging_face"
"""Key of a checkpoint's config.json: special ids of the source, and these settings."""
SETTINGS_KEY = "generation_config"
FILE_NAME = "generation_config.json"
EOS_KEY = "eos_token_id"


def imported_section(
    folder: Path, raw: Mapping[str, Any], vocab_size: int
) -> tuple[dict[str, Any], list[str]]:
    """What a checkpoint keeps of a Hugging Face folder, and what is wrong with it.

    Args:
        folder: Its generation_config.json is read where there is one.
        raw: Its parsed config.json.
        vocab_size: Ids that the model has.

    Raises:
        DataError: The file is no JSON object.
    """
    path = folder / FILE_NAME
    has_file = path.exists() or path.is_symlink()
    settings = read_json_object(path) if has_file else {}
    problems = []
    section: dict[str, Any] = {}
    for name, source, kept in (("config.json", raw, section), (FILE_NAME, settings, settings)):
        for key in TOKEN_ID_KEYS:
            value = source.get(key)
            ids = value if isinstance(value, list) and key == EOS_KEY else [value]
            if any(type(i) is not int for i in ids) and value is not None:
                problems.append(f"{key} of {name} is {value!r}, not an id")
            elif key == EOS_KEY and any(i is not None and not 0 <= i < vocab_size for i in ids):
                problems.append(f"{key} of {name} is {value!r}, of a model with {vocab_size} ids")
            elif value is None or not all(0 <= i < vocab_size for i in ids):
                kept.pop(key, None)  # -1 and an id behind the last are how some say "none"
            else:
                kept[key] = value
    if has_file or isinstance(section.get(EOS_KEY), list):
        # Without one, transformers takes those of config.json.
        settings.setdefault(EOS_KEY, section.get(EOS_KEY))
        section[SETTINGS_KEY] = settings
    return section, problems


def inherited_section(*sources: str | Path | None) -> dict[str, Any]:
    """The section of the first checkpoint that is there, as an entry of a config.json.

    Args:
        sources: Checkpoints, folders of them, or runs; None is none.

    Returns:
        Empty where no checkpoint says anything. One that cannot be read says nothing here: whoever
        loads its weights finds out.
    """
    for source in filter(None, sources):
        try:
            section = CheckpointReader(newest_checkpoint(source)).config.get(SECTION)
        except CheckpointError:
            continue
        return {SECTION: section} if section else {}
    return {}


def stop_ids(config: Mapping[str, Any], eos_id: int | None) -> tuple[int, ...]:
    """Ids at which a completion ends: the tokenizer's end of sequence, then the source's.

    Args:
        config: The checkpoint's config.json.
        eos_id: Of the tokenizer; None: there is no tokenizer.
    """
    section = config.get(SECTION) or {}
    settings = section.get(SETTINGS_KEY) or (section if eos_id is None else {})
    listed = settings.get(EOS_KEY)
    ids = [eos_id, *(listed if isinstance(listed, list) else [listed])]
    return tuple(dict.fromkeys(i for i in ids if i is not None))


def exported_settings(config: Mapping[str, Any], token_ids: Mapping[str, Any]) -> dict[str, Any]:
    """The `generation_config.json` of an export.

    Args:
        config: The checkpoint's config.json.
        token_ids: Of the exported tokenizer.
    """
    section = config.get(SECTION) or {}
    # With this key older versions of transformers make the file again from config.json.
    settings = dict(section.get(SETTINGS_KEY) or {})
    settings.pop("_from_model_config", None)
    settings |= {key: number for key, number in token_ids.items() if number is not None}
    return settings
