"""Values of configuration fields: whether they have the type of their field, and how to say so.

Field types are `int`, `float`, `bool`, `str`, `None`, `Any`, `Literal`, `tuple[X, ...]`,
`dict[str, X]`, dataclasses, and unions of those.
"""

import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Literal, Union

from megatron_chimed.errors import ConfigError

_WORDS: Mapping[Any, tuple[str, str]] = MappingProxyType(
    {
        int: ("a whole number", "whole numbers"),
        float: ("a number", "numbers"),
        bool: ("true or false", "values that are true or false"),
        str: ("a string", "strings"),
        type(None): ("null", "nulls"),
        Any: ("any value", "values"),
    }
)
_LARGEST = (1 << 64) - 1  # the largest seed; no other setting is as large


class WrongType(Exception):  # noqa: N818  (caught by the caller, who knows the setting's name)
    """A value does not have the type of its field."""

    def __init__(self, path: str, value: Any, wanted: str) -> None:
        """`path` leads from the setting to the value, such as `[2].weight`; mostly empty."""
        super().__init__(path, value, wanted)
        self.path, self.value, self.wanted = path, value, wanted


def field_defaults(config: type, prefix: str = "") -> dict[str, Any]:
    """The default of each field that has one, by dotted key, also of fields within sections."""
    defaults: dict[str, Any] = {}
    kinds = field_types(config)
    for field in dataclasses.fields(config):
        key, kind = f"{prefix}{field.name}", kinds[field.name]
        if dataclasses.is_dataclass(kind):
            defaults |= field_defaults(typing.cast(type, kind), f"{key}.")
        elif field.default is not dataclasses.MISSING:
            defaults[key] = field.default
    return defaults


def check_types(config: Any, section: str) -> None:
    """Refuses values of a settings object that do not have their field's type.

    For values that no parser has checked: of a Hugging Face folder, a checkpoint, a caller.

    Args:
        config: A dataclass.
        section: Its name in a run's configuration.

    Raises:
        ConfigError: A field has a value of another type.
    """
    for name, kind in field_types(type(config)).items():
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            continue
        try:
            converted(value, kind)
        except WrongType as error:
            setting = f"--{section}.{name}{error.path}"
            raise ConfigError(f"{setting} is {shown(error.value)}: {error.wanted}.") from None


@functools.cache
def field_types(kind: type) -> Mapping[str, Any]:
    """The types of a dataclass's fields by name."""
    return MappingProxyType(typing.get_type_hints(kind))


def members(kind: Any) -> tuple[Any, ...]:
    """The members of a union; of any other type, the type itself."""
    is_union = isinstance(kind, types.UnionType) or typing.get_origin(kind) is Union
    return typing.get_args(kind) if is_union else (kind,)


def converted(value: Any, kind: Any, build: Callable[[type, Any, str], Any] | None = None) -> Any:
    """The value in the form of its field's type: lists as tuples, whole numbers as floats.

    Args:
        value: As YAML gives it, or already of the type.
        kind: The field's type.
        build: For values that were read from YAML: makes a dataclass from (class, mapping, path).
            None: the values are already Python objects, and a number in quotes is a string.

    Raises:
        WrongType: The value has another type.
    """
    choices = members(kind)
    container = next((choice for choice in choices if _holds(choice, value)), None)
    if container is not None:
        return _converted_container(value, container, build)
    for choice in choices:
        found, result = _converted_scalar(value, choice, is_text=build is not None)
        if found:
            if isinstance(result, int) and abs(result) > _LARGEST:
                raise WrongType("", value, "no setting takes a number as large")
            return result
    raise WrongType("", value, f"it must be {describe(kind)}")


def _holds(kind: Any, value: Any) -> bool:
    """Whether a type is a container, and the value one of the same sort."""
    origin = typing.get_origin(kind)
    if origin is tuple:
        return isinstance(value, list | tuple)
    if origin is dict:
        return isinstance(value, Mapping)
    return dataclasses.is_dataclass(kind) and (
        isinstance(value, Mapping) or isinstance(value, typing.cast(type, kind))
    )


def _converted_container(
    value: Any, kind: Any, build: Callable[[type, Any, str], Any] | None
) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return tuple(
            _nested(item, arguments[0], build, f"[{index}]") for index, item in enumerate(value)
        )
    if origin is dict:
        return {key: _nested(item, arguments[1], build, f".{key}") for key, item in value.items()}
    if isinstance(value, kind):
        return value
    if build is None:
        raise WrongType("", value, f"it must be {describe(kind)}")
    return build(kind, value, "")


def _nested(value: Any, kind: Any, build: Callable[[type, Any, str], Any] | None, path: str) -> Any:
    inner = None if build is None else lambda cls, item, rest: build(cls, item, path + rest)
    try:
        return converted(value, kind, inner)
    except WrongType as error:
        raise WrongType(path + error.path, error.value, error.wanted) from None


def _converted_scalar(value: Any, kind: Any, *, is_text: bool) -> tuple[bool, Any]:
    if kind is Any:
        return True, value
    if typing.get_origin(kind) is Literal:
        # YAML 1.1 reads the plain words off and on as booleans.
        word = {False: "off", True: "on"}.get(value) if isinstance(value, bool) else value
        return word in typing.get_args(kind), word
    if kind is float:
        return _converted_float(value, is_text=is_text)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool), value
    return isinstance(kind, type) and isinstance(value, kind), value


def _converted_float(value: Any, *, is_text: bool) -> tuple[bool, Any]:
    allowed = (int, float, str) if is_text else (int, float)
    if isinstance(value, bool) or not isinstance(value, allowed):
        return False, value
    try:
        return True, float(value)  # YAML 1.1 reads 1e-4, which has no point, as a string
    except (ValueError, OverflowError):
        return False, value


def describe(kind: Any) -> str:
    """The values of a type in words: `a whole number or null`."""
    return _joined(_describe(choice) for choice in members(kind))


def _describe(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin is tuple:
        return f"a list of {_describe_several(arguments[0])}"
    if origin is dict:
        return f"a mapping of names to {_describe_several(arguments[1])}"
    if dataclasses.is_dataclass(kind):
        return f"a mapping with the keys {', '.join(field_types(typing.cast(type, kind)))}"
    return _WORDS[kind][0]


def _describe_several(kind: Any) -> str:
    if dataclasses.is_dataclass(kind):
        names = ", ".join(field_types(typing.cast(type, kind)))
        return f"mappings with the keys {names}"
    if kind in _WORDS:
        return _WORDS[kind][1]
    return f"values that are each {describe(kind)}"


def _joined(words: Iterator[str]) -> str:
    return " or ".join(words)


def shown(value: Any) -> str:
    """A value as YAML writes it, for messages."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {shown(item)}' for key, item in value.items())}}}"
    return str(value) if isinstance(value, int | float) else repr(value)
