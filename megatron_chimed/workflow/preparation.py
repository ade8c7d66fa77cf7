"""Prepares each step: its command, its resolved configuration, and its inputs."""

import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_chimed.errors import ChimedError, ConfigError, closest
from megatron_chimed.field_types import field_defaults
from megatron_chimed.workflow.artifacts import ArtifactType
from megatron_chimed.workflow.declaration import DeclaredStep, Workflow
from megatron_chimed.yaml_files import flatten, load_yaml, merged, plain

HELP_SECONDS = 120
_FLAG = re.compile(r"(?<![\w-])--([a-z](?:[a-z0-9_.-]*[a-z0-9])?)")


@dataclass(frozen=True, kw_only=True)
class StepInput:
    """One file, folder or data set that a step reads."""

    key: str
    """The option, or the key of the configuration, that names it."""
    path: str
    type: ArtifactType
    producer: str | None
    """The earlier step that makes it, if any."""


@dataclass(frozen=True, kw_only=True)
class PreparedStep:
    """A step, ready to be assessed and run."""

    declared: DeclaredStep
    command: tuple[str, ...]
    config: Mapping[str, Any]
    """What determines the result besides the inputs: options, or the resolved configuration."""
    config_path: Path | None
    """Where the configuration is written for the tool; None if it takes none."""
    inputs: tuple[StepInput, ...]

    @property
    def dependencies(self) -> tuple[str, ...]:
        """The earlier steps whose outputs it reads."""
        return tuple(self.declared.references)

    @property
    def seeds(self) -> dict[str, Any]:
        """The configured seeds by key."""
        flat = flatten(self.config)
        return {key: value for key, value in flat.items() if key.rpartition(".")[2] == "seed"}

    def result_config(self) -> dict[str, Any]:
        """`config`, flat, without paths of inputs and output, which are compared by content."""
        flat = flatten(self.config)
        del flat[self.declared.kind.output]
        paths = {item.key for item in self.inputs}
        return {key: _pathless(value) if key in paths else value for key, value in flat.items()}

    def defaults(self) -> dict[str, Any]:
        """Defaults of the settings in `result_config`; none for options, which are as given."""
        from megatron_chimed.config.run_config import RunConfig
        from megatron_chimed.rejection.config import RejectionConfig

        kinds = {"run": RunConfig, "rejection": RejectionConfig}
        kind = kinds.get(self.declared.kind.config)
        return {} if kind is None else plain(field_defaults(kind))


def prepare_steps(
    workflow: Workflow, tools: Path, preset: Callable[[str], dict[str, Any]]
) -> tuple[PreparedStep, ...]:
    """Prepares every step and checks all that can be checked before anything runs.

    Args:
        workflow: The declaration.
        tools: The folder of the project's commands.
        preset: Returns the defaults of a preset by dotted key; raises ConfigError for an unknown
            name.

    Raises:
        ConfigError: A tool or an option of it does not exist, or a configuration is wrong or does
            not fit the number of ranks.
    """
    producers = {step.name: step for step in workflow.steps}
    flags: dict[tuple[str, ...], frozenset[str]] = {}
    prepared = []
    for step in workflow.steps:
        try:
            _check_tool(step, tools, flags)
            defaults = preset(step.preset) if step.preset else {}
            config = _config_of(step, defaults)
            prepared.append(_prepare_step(step, config, workflow.folder, tools, producers))
        except ChimedError as error:
            raise type(error)(f"{workflow.path}, step {step.name}: {error}") from None
    return tuple(prepared)


def _pathless(value: Any) -> Any:
    """What remains of an option that names inputs: their number, and weights of a blend."""
    if isinstance(value, list | tuple):
        return [_pathless(item) for item in value]
    if isinstance(value, Mapping):
        return {key: item for key, item in value.items() if key != "prefix"}
    return None


def _check_tool(
    step: DeclaredStep, tools: Path, flags: dict[tuple[str, ...], frozenset[str]]
) -> None:
    """Compares the step's options with the flags in the tool's `--help`, run once per tool."""
    kind = step.kind
    if not (tools / kind.tool).is_file():
        raise ConfigError(f"tools/{kind.tool} does not exist in this version. Remove the step.")
    if kind.config != "none" or not step.options:
        return
    command = (sys.executable, str(tools / kind.tool), *kind.subcommand, "--help")
    if command not in flags:
        asked = subprocess.run(
            command, capture_output=True, text=True, timeout=HELP_SECONDS, check=False
        )
        if asked.returncode:
            raise ConfigError(f"tools/{kind.tool} does not start: {asked.stderr.strip()}")
        flags[command] = frozenset(_FLAG.findall(asked.stdout))
    for option, value in step.options.items():
        name = f"no-{option}" if value is False else option
        if name not in flags[command]:
            raise ConfigError(
                f"tools/{kind.tool} has no flag --{name}{closest(name, sorted(flags[command]))}"
            )


def _config_of(step: DeclaredStep, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The options, or the configuration with all defaults; both include the output."""
    kind = step.kind
    if kind.config == "none":
        return {**step.options, kind.output: step.output}
    given: dict[str, Any] = {}
    for part in (*(load_yaml(Path(file)) for file in step.config), dict(step.settings)):
        given = merged(given, part)
    given[kind.output] = step.output
    return given if kind.config == "plain" else _resolve(given, step, defaults)


def _prepare_step(
    step: DeclaredStep,
    config: dict[str, Any],
    folder: Path,
    tools: Path,
    producers: Mapping[str, DeclaredStep],
) -> PreparedStep:
    kind, config_path = step.kind, None
    if kind.config == "none":
        words = list(_option_words(config, kind.repeated))
    else:
        config_path = folder / "configs" / f"{step.name}.yaml"
        words = ["--config", str(config_path)]
    return PreparedStep(
        declared=step,
        command=(*_launcher(step, folder, tools), str(tools / kind.tool), *kind.subcommand, *words),
        config=config,
        config_path=config_path,
        inputs=tuple(_inputs(step, config, producers)),
    )


def _option_words(options: Mapping[str, Any], repeated: frozenset[str]) -> Iterator[str]:
    for key, value in options.items():
        if isinstance(value, bool):
            yield f"--{key}" if value else f"--no-{key}"
        elif isinstance(value, list) and key not in repeated:
            yield from (f"--{key}", *map(str, value))
        elif isinstance(value, list):
            yield from (f"--{key}={item}" for item in value)
        elif isinstance(value, Mapping):  # such as columns: {question: 题目, answer: 解答}
            yield from (f"--{key}", *(f"{name}={item}" for name, item in value.items()))
        elif isinstance(value, str | int | float):
            yield f"--{key}={value}"  # one word: a value may begin with a minus
        else:
            raise ConfigError(
                f"option {key} is {value!r}: give a value, a list, a mapping, true or false."
            )


def _resolve(
    given: Mapping[str, Any], step: DeclaredStep, defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """The full configuration of a step, as its tool would read it.

    The tool is given the resolved one, so what is checked is what runs.
    """
    from megatron_chimed.config.parsing import config_of
    from megatron_chimed.config.run_config import RunConfig, settings_called
    from megatron_chimed.rejection.config import RejectionConfig

    sources = ", ".join((*step.config, "settings"))
    if step.kind.config == "rejection":
        rejection = config_of(given, RejectionConfig, named=sources, defaults=defaults)
        return plain(dataclasses.asdict(rejection))
    with settings_called(lambda key: f"settings.{key}"):
        config = config_of(given, RunConfig, named=sources, defaults=defaults)
        if not step.launch.command:
            config.plan_layout(step.launch.nproc)
    return plain(dataclasses.asdict(config))


def _launcher(step: DeclaredStep, folder: Path, tools: Path) -> list[str]:
    if step.launch.command:
        return list(step.launch.command)
    if step.launch.nproc == 1:
        return [sys.executable]
    # The launcher watches a growing output; for an atomic one, logs and kept rows in the workflow's
    # folder.
    watched = str(folder) if step.kind.is_atomic else step.output
    launch = [sys.executable, str(tools / "launch.py")]
    return [*launch, "--nproc-per-node", str(step.launch.nproc), "--run-folder", watched]


def _inputs(
    step: DeclaredStep, config: Mapping[str, Any], producers: Mapping[str, DeclaredStep]
) -> Iterator[StepInput]:
    flat, declared = flatten(config), set()
    for key, content in step.kind.inputs.items():
        for path in _paths_in(flat.get(key)):
            declared.add(path)
            yield StepInput(key=key, path=path, type=content, producer=_producer(step, path))
    for path in step.inputs:
        declared.add(path)
        producer = _producer(step, path)
        content = producers[producer].kind.output_type if producer else "files"
        yield StepInput(key="inputs", path=path, type=content, producer=producer)
    # References in options that the kind does not list: the referenced step's whole output counts.
    for name, texts in step.references.items():
        if not declared.intersection(texts):
            content, path = producers[name].kind.output_type, producers[name].output
            yield StepInput(key=f"${{{name}}}", path=path, type=content, producer=name)


def _producer(step: DeclaredStep, path: str) -> str | None:
    return next((name for name, texts in step.references.items() if path in texts), None)


def _paths_in(value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, list | tuple):
        return [path for item in value for path in _paths_in(item)]
    return [value["prefix"] if isinstance(value, Mapping) else str(value)]
