"""Finds a template by name, or reads one from a YAML file."""

import dataclasses
import os
from pathlib import Path
from typing import Any

from megatron_chimed.data.templates.named import ALL_TEMPLATES
from megatron_chimed.data.templates.segment_template import SegmentTemplate
from megatron_chimed.data.templates.template import Template
from megatron_chimed.errors import ConfigError

YAML_SUFFIXES = (".yaml", ".yml")
REQUIRED = ("name", "prompt")


def load_template(name: str | os.PathLike) -> Template:
    """Loads a template.

    Args:
        name: One of `ALL_TEMPLATES`, or the path of a YAML file whose keys are the fields of
            `SegmentTemplate`.

    Raises:
        ConfigError: There is no such template or file, or the file does not define a template.
    """
    if name in ALL_TEMPLATES:
        return ALL_TEMPLATES[str(name)]
    path = Path(name)
    if path.suffix not in YAML_SUFFIXES or not path.is_file():
        raise ConfigError(
            f"template {str(name)!r} is none of {', '.join(ALL_TEMPLATES)}, and no .yaml file of "
            "that name exists. Check the spelling or the path."
        )
    return _build(path, _read(path))


def _read(path: Path) -> dict[str, Any]:
    import yaml  # takes 30 ms, needed only for files

    from megatron_chimed.yaml_files import UniqueKeyLoader

    try:
        value = UniqueKeyLoader(path.read_text(encoding="utf-8")).get_single_data()
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}. Fix the file.") from None
    if not isinstance(value, dict):
        raise ConfigError(
            f"{path} holds a {type(value).__name__}, not the fields of a template. Write lines "
            'such as  prompt: "<human>:{question}\\n<bot>:"'
        )
    return value


def _build(path: Path, value: dict[str, Any]) -> SegmentTemplate:
    fields = [field.name for field in dataclasses.fields(SegmentTemplate)]
    unknown = [key for key in value if key not in fields]
    missing = [key for key in REQUIRED if key not in value]
    if unknown or missing:
        what = f"unknown key {unknown[0]!r}" if unknown else f"no {missing[0]!r}"
        raise ConfigError(f"{path}: {what}. A template has {', '.join(fields)}.")
    tags = value.get("tags", [])
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise ConfigError(f"{path}: tags is {tags!r}, not a list of texts. Quote each tag.")
    if not isinstance(value.get("add_bos", True), bool):
        raise ConfigError(f"{path}: add_bos is {value['add_bos']!r}, neither true nor false.")
    for key in value.keys() - {"tags", "add_bos"}:
        if not isinstance(value[key], str):
            kind = type(value[key]).__name__
            raise ConfigError(f"{path}: {key} is of type {kind}, not a text. Quote it.")
    return SegmentTemplate(**{**value, "tags": tuple(tags)})
