"""Configurations from YAML files and dotted flags: `--config FILE --section.field VALUE`.

Files and flags are applied in the order in which they are given; what a later one sets wins.
"""

import argparse
import ast
import dataclasses
import functools
import inspect
import textwrap
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import yaml

from megatron_chimed.command_line import CommandParser, why_unsupported
from megatron_chimed.errors import ConfigError, closest
from megatron_chimed.field_types import (
    WrongType,
    converted,
    describe,
    field_types,
    members,
    shown,
)
from megatron_chimed.yaml_files import UniqueKeyLoader, load_yaml, plain

Config = TypeVar("Config")
NONE: Mapping[str, Any] = types.MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One key of a configuration."""

    key: str
    """With its sections: `optim.lr`."""
    type: Any
    default: Any
    """`dataclasses.MISSING`: it must be given."""
    help: str
    """The sentence below the field."""

    @property
    def flag(self) -> str:
        """Its flag: in kebab-case without a section, else the key itself."""
        return f"--{self.key if '.' in self.key else self.key.replace('_', '-')}"


@dataclass(frozen=True, kw_only=True)
class Given:
    """A value that somebody gave to a setting."""

    value: Any
    source: str
    """A file; empty: a flag."""


class ConfigParser(CommandParser, Generic[Config]):
    """Reads a configuration from a command line and the files that it names.

    A command may add flags of its own; `parse_args` reads all, `config` makes the configuration.

    Args:
        kind: The configuration's class; fields that are dataclasses are its sections.
        prog: Name of the command.
        description: Shown by `--help` as it is.
    """

    def __init__(self, kind: type[Config], prog: str, description: str | None = None) -> None:
        super().__init__(
            prog=prog,
            usage=f"{prog} --config FILE [--section.field VALUE ...]",
            description=description,
        )
        self._kind = kind
        self.set_defaults(given=[])
        _add_flags(self, kind)

    def config(self, flags: argparse.Namespace, defaults: Mapping[str, Any] = NONE) -> Config:
        """The configuration.

        Args:
            flags: From `parse_args`.
            defaults: Values by dotted key that replace those of the class.

        Raises:
            ConfigError: An unknown key, a missing or wrong value, or what a section says.
            SystemExit: After `--print-config`.
        """
        given = {key: Given(value=value, source="") for key, value in defaults.items()}
        for setting, text in flags.given:
            if setting is None:
                given |= _flatten(self._kind, load_yaml(Path(text)), text)
            else:
                value = _value_of_flag(text, setting.type)
                given[setting.key] = Given(value=value, source="")
        if flags.print_config:
            _print_config(self._kind, given)
            raise SystemExit(0)
        return _complete(self._kind, given)


def config_of(
    values: Mapping[str, Any],
    kind: type[Config],
    *,
    named: str,
    defaults: Mapping[str, Any] = NONE,
) -> Config:
    """The configuration that a file with these keys would give.

    Args:
        values: By key; sections are mappings.
        kind: The configuration's class.
        named: Where the values come from, for messages.
        defaults: Values by dotted key that replace those of the class.

    Raises:
        ConfigError: As of `ConfigParser.config`.
    """
    given = {key: Given(value=value, source="") for key, value in defaults.items()}
    return _complete(kind, given | _flatten(kind, plain(values), named))


def settings_of(kind: type, prefix: str = "") -> Iterator[Setting]:
    """Every setting of a configuration, in order."""
    kinds, helps = field_types(kind), _sentences(kind)
    for field in dataclasses.fields(kind):
        key = prefix + field.name
        if dataclasses.is_dataclass(kinds[field.name]):
            yield from settings_of(kinds[field.name], f"{key}.")
        else:
            default = field.default
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            yield Setting(
                key=key, type=kinds[field.name], default=default, help=helps.get(field.name, "")
            )


@functools.cache
def _sentences(kind: type) -> Mapping[str, str]:
    """The sentence below each field of a class, which only its source has."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    body = cast(ast.ClassDef, tree).body
    return {
        field.target.id: inspect.cleandoc(below.value.value)
        for field, below in zip(body, body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
        and isinstance(below.value.value, str)
    }


class _Append(argparse.Action):
    """Appends (setting, text) to `given`, so that the order of files and flags is kept."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        namespace.given = [*namespace.given, (self.const, values)]


def _add_flags(parser: CommandParser, kind: type) -> None:
    parser.add_argument(
        "--config",
        action=_Append,
        dest="given",
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="YAML file; may be given several times",
    )
    parser.add_argument(
        "--print-config",
        action="store_true",
        help="print the whole configuration as a file and exit",
    )
    groups: dict[str, argparse._ArgumentGroup] = {}
    for setting in settings_of(kind):
        section = setting.key.rpartition(".")[0]
        if section and section not in groups:
            groups[section] = parser.add_argument_group(section)
        is_required = setting.default is dataclasses.MISSING
        ending = "required" if is_required else f"default: {shown(_as_mappings(setting.default))}"
        sentence = f"{' '.join(setting.help.split())} ({describe(setting.type)}; {ending})"
        (groups[section] if section else parser).add_argument(
            setting.flag,
            action=_Append,
            dest="given",
            const=setting,
            default=argparse.SUPPRESS,
            metavar="VALUE",
            help=sentence.replace("%", "%%"),
        )


def _value_of_flag(text: str, kind: Any) -> Any:
    """What the text of a flag says: itself where a string may stand, else YAML."""
    takes_text = any(member is str for member in members(kind))
    if text == "null" and type(None) in members(kind):
        return None
    if takes_text and text[:1] not in ("[", "{"):
        return text
    try:
        value = UniqueKeyLoader(text).get_single_data()
    except yaml.YAMLError:
        return text
    return text if takes_text and not isinstance(value, list | dict) else value


def _flatten(
    kind: type, values: Mapping[str, Any], source: str, prefix: str = ""
) -> dict[str, Given]:
    """The values of nested sections by dotted key.

    Raises:
        ConfigError: A key is unknown, or a section is no mapping.
    """
    flat: dict[str, Given] = {}
    kinds = field_types(kind)
    for name, value in values.items():
        key = f"{prefix}{name}"
        if name not in kinds:
            why = why_unsupported(str(name))
            hint = f": {why}." if why else closest(str(name), kinds)
            raise ConfigError(f"{source}: unknown key {key!r}{hint}")
        if not dataclasses.is_dataclass(kinds[name]):
            flat[key] = Given(value=value, source=source)
        elif isinstance(value, Mapping):
            flat |= _flatten(kinds[name], value, source, f"{key}.")
        else:
            raise ConfigError(
                f"{source}: {key} is {shown(value)}, but it is a section: give its keys, indented "
                f"below it ({', '.join(field_types(kinds[name]))})."
            )
    return flat


def _complete(kind: type[Config], given: Mapping[str, Given]) -> Config:
    """The configuration with the values that were given.

    Raises:
        ConfigError: A value is wrong or missing.
    """
    values = _values(kind, given)
    required = [s for s in settings_of(kind) if s.default is dataclasses.MISSING]
    missing = [setting for setting in required if setting.key not in values]
    if missing:
        keys = ", ".join(setting.key for setting in missing)
        flags = " ".join(f"{setting.flag} VALUE" for setting in missing)
        raise ConfigError(f"nothing sets {keys}. Set it in a file for --config, or with {flags}.")
    return _build(kind, values)


def _values(kind: type, given: Mapping[str, Given], prefix: str = "") -> dict[str, Any]:
    return {
        setting.key: _converted(setting, given[setting.key])
        for setting in settings_of(kind, prefix)
        if setting.key in given
    }


def _build(kind: type[Config], values: Mapping[str, Any], prefix: str = "") -> Config:
    arguments = {}
    for name, wanted in field_types(kind).items():
        key = f"{prefix}{name}"
        if dataclasses.is_dataclass(wanted):
            arguments[name] = _build(cast(type, wanted), values, f"{key}.")
        elif key in values:
            arguments[name] = values[key]
    return kind(**arguments)


def _converted(setting: Setting, given: Given) -> Any:
    source = given.source or setting.flag

    def build(kind: type, value: Mapping[str, Any], path: str) -> Any:
        return _build_item(kind, value, source, f"{setting.key}{path}.")

    try:
        return converted(given.value, setting.type, build)
    except WrongType as error:
        start = f"{source}: {setting.key}" if given.source else setting.flag
        raise ConfigError(f"{start}{error.path} is {shown(error.value)}: {error.wanted}.") from None


def _build_item(kind: type, value: Mapping[str, Any], source: str, prefix: str) -> Any:
    """A dataclass in a list, which has to bring its own required keys."""
    values = _values(kind, _flatten(kind, value, source, prefix), prefix)
    for setting in settings_of(kind, prefix):
        if setting.default is dataclasses.MISSING and setting.key not in values:
            raise ConfigError(f"{source}: {setting.key} is missing: {setting.help}")
    return _build(kind, values, prefix)


def _print_config(kind: type, given: Mapping[str, Given]) -> None:
    """Prints all settings as a file for `--config`; those that must still be given are null."""
    tree: dict[str, Any] = {}
    for setting in settings_of(kind):
        *sections, name = setting.key.split(".")
        value = None if setting.default is dataclasses.MISSING else setting.default
        if setting.key in given:
            value = _converted(setting, given[setting.key])
        section = functools.reduce(lambda branch, part: branch.setdefault(part, {}), sections, tree)
        section[name] = plain(_as_mappings(value))
    print(yaml.safe_dump(tree, allow_unicode=True, sort_keys=False), end="")


def _as_mappings(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_as_mappings(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return value
