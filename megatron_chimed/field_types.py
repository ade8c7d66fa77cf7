"""Whether the values of a settings object are of the types that its fields say."""

import types
import typing
from types import MappingProxyType
from typing import Any

from megatron_chimed.errors import ConfigError

_PLAIN = MappingProxyType(
    {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "a text",
        type(None): "null",
    }
)
_LARGEST = (1 << 64) - 1  # of a seed; nothing counts so far


def check_types(config: Any, section: str) -> None:
    """Refuses values of a settings object that are not of their field's type.

    A command line and YAML are checked as they are read; what comes from a Hugging Face folder or a
    checkpoint is not.

    Args:
        config: A dataclass; fields of other types than `int`, `float`, `bool`, `str`, `Literal` and
            those or None are passed over.
        section: Its name in a run's configuration.

    Raises:
        ConfigError: Such a value.
    """
    for name, kind in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        if isinstance(value, int) and abs(value) > _LARGEST:
            raise ConfigError(f"--{section}.{name} is {value}: such a number means nothing here.")
        if not _is_of(value, kind):
            raise ConfigError(
                f"--{section}.{name} is {value!r}, {type(value).__name__}: it must be "
                f"{_describe(kind)}."
            )


def _is_of(value: Any, kind: Any) -> bool:
    if isinstance(kind, types.UnionType):
        return any(_is_of(value, part) for part in typing.get_args(kind))
    if typing.get_origin(kind) is typing.Literal:
        return value in typing.get_args(kind)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return kind not in _PLAIN or isinstance(value, kind)


def _describe(kind: Any) -> str:
    if isinstance(kind, types.UnionType):
        return " or ".join(_describe(part) for part in typing.get_args(kind))
    if typing.get_origin(kind) is typing.Literal:
        return f"one of {', '.join(typing.get_args(kind))}"
    return _PLAIN.get(kind, getattr(kind, "__name__", str(kind)))
