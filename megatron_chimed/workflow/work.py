"""What a step comes to: the command, the resolved configuration, and what it reads."""

import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_chimed.errors import ChimedError, ConfigError, closest
from megatron_chimed.workflow.contents import Content
from megatron_chimed.workflow.declaration import Pipeline, Step
from megatron_chimed.yaml_files import flatten, load_yaml, merged, plain

HELP_SECONDS = 120
_FLAG = re.compile(r"(?<![\w-])--([a-z](?:[a-z0-9_.-]*[a-z0-9])?)")


@dataclass(frozen=True, kw_only=True)
class Input:
    """One thing that a step reads."""

    key: str
    """The option, or the key of the configuration, that names it."""
    path: str
    content: Content
    step: str | None
    """The earlier step that makes it, if one does."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """A step, ready to be judged and run."""

    step: Step
    command: tuple[str, ...]
    config: Mapping[str, Any]
    """What decides the result besides the inputs: options, or the resolved configuration."""
    config_path: Path | None
    """Where the configuration is written for the tool; None: it takes none."""
    inputs: tuple[Input, ...]

    @property
    def needs(self) -> tuple[str, ...]:
        """The earlier steps whose outputs it reads."""
        return tuple(self.step.references)

    @property
    def seeds(self) -> dict[str, Any]:
        """The seeds that were set, by their keys."""
        flat = flatten(self.config)
        return {key: value for key, value in flat.items() if key.rpartition(".")[2] == "seed"}

    def result_config(self) -> dict[str, Any]:
        """`config`, flat, without paths of inputs and output: those count by what they hold."""
        flat = flatten(self.config)
        del flat[self.step.kind.output]
        paths = {item.key for item in self.inputs}
        return {key: _pathless(value) if key in paths else value for key, value in flat.items()}


def prepare(
    pipeline: Pipeline, tools: Path, preset: Callable[[str], dict[str, Any]]
) -> tuple[Work, ...]:
    """Works out every step and checks all that can be checked before anything runs.

    Args:
        pipeline: The declaration.
        tools: The folder of the project's commands.
        preset: Gives the defaults of a name, by dotted key; raises ConfigError for one that it does
            not know.

    Raises:
        ConfigError: A tool that does not exist, an option that it does not have, a configuration
            that is wrong or does not fit the number of ranks.
    """
    makers = {step.name: step for step in pipeline.steps}
    flags: dict[tuple[str, ...], frozenset[str]] = {}
    works = []
    for step in pipeline.steps:
        try:
            _check_tool(step, tools, flags)
            defaults = preset(step.preset) if step.preset else {}
            config = _config_of(step, defaults)
            works.append(_work_of(step, config, pipeline.folder, tools, makers))
        except ChimedError as error:
            raise type(error)(f"{pipeline.path}, step {step.name}: {error}") from None
    return tuple(works)


def _pathless(value: Any) -> Any:
    """What is left of an option that names inputs: their number, and weights of a blend."""
    if isinstance(value, list | tuple):
        return [_pathless(item) for item in value]
    if isinstance(value, Mapping):
        return {key: item for key, item in value.items() if key != "prefix"}
    return None


def _check_tool(step: Step, tools: Path, flags: dict[tuple[str, ...], frozenset[str]]) -> None:
    """Compares the step's options with the names in the tool's `--help`, asked once per tool."""
    kind = step.kind
    if not (tools / kind.tool).is_file():
        raise ConfigError(
            f"it needs tools/{kind.tool}, which this version does not have. Remove the step."
        )
    if kind.config != "none" or not step.options:
        return
    command = (sys.executable, str(tools / kind.tool), *kind.words, "--help")
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


def _config_of(step: Step, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Options, or the configuration with all defaults, and the output among them."""
    kind = step.kind
    if kind.config == "none":
        return {**step.options, kind.output: step.output}
    given: dict[str, Any] = {}
    for part in (*(load_yaml(Path(file)) for file in step.config), dict(step.settings)):
        given = merged(given, part)
    given[kind.output] = step.output
    return given if kind.config == "plain" else _resolve(given, step, defaults)


def _work_of(
    step: Step,
    config: dict[str, Any],
    folder: Path,
    tools: Path,
    makers: Mapping[str, Step],
) -> Work:
    kind, config_path = step.kind, None
    if kind.config == "none":
        words = list(_option_words(config, kind.repeated))
    else:
        config_path = folder / "configs" / f"{step.name}.yaml"
        words = ["--config", str(config_path)]
    return Work(
        step=step,
        command=(*_launcher(step, folder, tools), str(tools / kind.tool), *kind.words, *words),
        config=config,
        config_path=config_path,
        inputs=tuple(_inputs(step, config, makers)),
    )


def _option_words(options: Mapping[str, Any], repeated: frozenset[str]) -> Iterator[str]:
    for key, value in options.items():
        if isinstance(value, bool):
            yield f"--{key}" if value else f"--no-{key}"
        elif isinstance(value, list) and key not in repeated:
            yield from (f"--{key}", *map(str, value))
        elif isinstance(value, list):
            yield from (f"--{key}={item}" for item in value)
        elif isinstance(value, str | int | float):
            yield f"--{key}={value}"  # one word: a value may begin with a minus
        else:
            raise ConfigError(f"option {key} is {value!r}: give a value, a list, true or false.")


def _resolve(given: Mapping[str, Any], step: Step, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The whole configuration of a step, as its tool would read it.

    What is checked is what runs: the tool is given the resolved one.
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


def _launcher(step: Step, folder: Path, tools: Path) -> list[str]:
    if step.launch.command:
        return list(step.launch.command)
    if step.launch.nproc == 1:
        return [sys.executable]
    # Signs of life: a growing output is its own; else logs and kept rows in the pipeline's folder.
    watched = str(folder) if step.kind.is_atomic else step.output
    launch = [sys.executable, str(tools / "launch.py")]
    return [*launch, "--nproc-per-node", str(step.launch.nproc), "--run-folder", watched]


def _inputs(step: Step, config: Mapping[str, Any], makers: Mapping[str, Step]) -> Iterator[Input]:
    flat, declared = flatten(config), set()
    for key, content in step.kind.inputs.items():
        for path in _paths_in(flat.get(key)):
            declared.add(path)
            yield Input(key=key, path=path, content=content, step=_maker(step, path))
    for path in step.inputs:
        declared.add(path)
        maker = _maker(step, path)
        content = makers[maker].kind.makes if maker else "files"
        yield Input(key="inputs", path=path, content=content, step=maker)
    # Named where the kind declares nothing: what counts is the whole of the step's output.
    for name, texts in step.references.items():
        if not declared.intersection(texts):
            content, path = makers[name].kind.makes, makers[name].output
            yield Input(key=f"${{{name}}}", path=path, content=content, step=name)


def _maker(step: Step, path: str) -> str | None:
    return next((name for name, texts in step.references.items() if path in texts), None)


def _paths_in(value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, list | tuple):
        return [path for item in value for path in _paths_in(item)]
    return [value["prefix"] if isinstance(value, Mapping) else str(value)]
