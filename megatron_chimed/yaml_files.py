"""YAML files of plain values without duplicate keys."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from megatron_chimed.errors import ConfigError


class UniqueKeyLoader(yaml.SafeLoader):
    """Refuses duplicate keys, of which YAML would silently keep the last.

    Keys that a merge (`<<`) adds may be overridden: that is its purpose.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """A mapping.

        Raises:
            yaml.constructor.ConstructorError: A key is given twice.
        """
        given = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        keys = [self.construct_object(key, deep=deep) for key in given]
        if twice := sorted({str(key) for key in keys if keys.count(key) > 1}):
            text = f"duplicate keys: {', '.join(twice)}"
            raise yaml.constructor.ConstructorError(None, None, text, node.start_mark)
        return super().construct_mapping(node, deep)


def load_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML file with a mapping of plain values.

    Raises:
        ConfigError: The file cannot be read, or holds something else, or a key twice.
    """
    try:
        content = UniqueKeyLoader(path.read_text(encoding="utf-8")).get_single_data()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}. Check the path.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}.") from None
    if content is None:
        raise ConfigError(f"{path} is empty: it must hold a mapping of keys.")
    if not isinstance(content, dict):
        kind = "a list" if isinstance(content, list) else f"the value {content!r}"
        raise ConfigError(f"{path} holds {kind}, not a mapping of keys.")
    _check_plain(content, str(path))
    return content


def _check_plain(value: Any, where: str) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ConfigError(f"{where}: the key {key!r} is not a string. Quote it.")
            _check_plain(item, f"{where}: {key}")
    elif isinstance(value, list):
        for item in value:
            _check_plain(item, where)
    elif value is not None and not isinstance(value, str | int | float):
        raise ConfigError(f"{where} is a {type(value).__name__}. Quote it to make it a string.")


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Two nested mappings as one; where both have a value, the second one's."""
    both = dict(first)
    for key, value in second.items():
        before = both.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            both[key] = merged(before, value)
        else:
            both[key] = value
    return both


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as a flat one with dotted keys; lists are values."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat |= flatten(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def plain(value: Any) -> Any:
    """The value with plain dictionaries and lists, as YAML and JSON have them."""
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return value
