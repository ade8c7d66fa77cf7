"""The workflow that a user declares in YAML: named steps in order, each with a kind and options.

    folder: runs/tiny                       # ledger, logs, and outputs without a path of their own
    launch: {nproc: 2}                      # for steps that may run on several ranks
    steps:
      corpus:
        kind: preprocess                    # a row of `kinds.py`
        options: {input: text/, tokenizer: tokenizer.model, workers: 2}
      pretrain:
        kind: train
        preset: tiny                        # defaults for the model
        config: tiny.yaml                   # one file or several, later ones win
        settings: {data: {train: "${corpus}"}}      # win over files
      hf:
        kind: export-hf
        options: {checkpoint: "${pretrain}", verify-logits: true}

`${name}` is the path of an earlier step's output; `${folder}`, `${output}` and `${python}` are the
workflow's folder, the step's own output and this Python. Nothing else is replaced, nothing is run.
`inputs` lists further files that a step reads, `output` is the path of its output. Paths are
relative to the current directory.
"""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_chimed.errors import ConfigError, closest
from megatron_chimed.workflow.kinds import KINDS, StepKind
from megatron_chimed.yaml_files import load_yaml

KEYS = ("folder", "launch", "steps")
STEP_KEYS = tuple("kind options preset config settings inputs output launch".split())
LAUNCH_KEYS = ("nproc", "command")
RESERVED = ("folder", "output", "python", "logs", "configs", "launch")
_NAME = re.compile(r"[a-z][a-z0-9_-]*")
_REFERENCE = re.compile(r"\$\{([^{}]*)\}")


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How the ranks of a step are started."""

    nproc: int = 1
    """Ranks on this node."""
    command: tuple[str, ...] = ()
    """Arguments before the tool's path that replace the launcher: `srun ...`, `torchrun ...`."""


@dataclass(frozen=True, kw_only=True)
class DeclaredStep:
    """One step with all its references resolved."""

    name: str
    kind: StepKind
    output: str
    options: Mapping[str, Any]
    preset: str | None
    """Name of the preset that gives the configuration's defaults."""
    config: tuple[str, ...]
    settings: Mapping[str, Any]
    inputs: tuple[str, ...]
    launch: Launch
    references: Mapping[str, tuple[str, ...]]
    """By earlier step, the resolved texts that refer to it."""


@dataclass(frozen=True, kw_only=True)
class Workflow:
    """A checked declaration."""

    path: Path
    folder: Path
    steps: tuple[DeclaredStep, ...]


def load_workflow(path: Path) -> Workflow:
    """Reads a declaration.

    Raises:
        ConfigError: The file is not YAML, or a key, name, kind, value or reference is wrong.
    """
    content = load_yaml(path)
    _check_keys(content, KEYS, str(path))
    steps = content.get("steps")
    if not isinstance(content.get("folder"), str) or not isinstance(steps, dict) or not steps:
        raise ConfigError(f"{path}: give `folder: PATH` and `steps:` with at least one step.")
    folder = Path(content["folder"])
    outputs: dict[str, str] = {}
    made = []
    for name, given in steps.items():
        try:
            made.append(_make_step(name, given, content.get("launch"), folder, outputs))
        except ConfigError as error:
            raise ConfigError(f"{path}, step {name}: {error}") from None
        outputs[name] = made[-1].output
    paths = [str(Path(output).absolute()) for output in outputs.values()]
    for step, output in zip(made, paths, strict=True):
        if paths.count(output) > 1:
            raise ConfigError(f"{path}, step {step.name}: another step writes to {output} too.")
    return Workflow(path=path, folder=folder, steps=tuple(made))


def _check_keys(given: Any, known: tuple[str, ...], where: str) -> None:
    if not isinstance(given, dict):
        raise ConfigError(f"{where} is {given!r}, not a mapping with {', '.join(known)}.")
    for key in given:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}{closest(key, known)}.")


class _ReferenceResolver:
    """Replaces references and records them."""

    def __init__(self, paths: Mapping[str, str]) -> None:
        self._paths = paths
        self.found: dict[str, tuple[str, ...]] = {}

    def resolve(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self.resolve(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.resolve(item) for item in value]
        if not isinstance(value, str):
            return value
        resolved = _REFERENCE.sub(self._path_of, value)
        for name in _REFERENCE.findall(value):
            self.found[name] = (*self.found.get(name, ()), resolved)
        return resolved

    def _path_of(self, match: re.Match) -> str:
        name = match[1]
        if name not in self._paths:
            raise ConfigError(f"{match[0]} is not an earlier step{closest(name, self._paths)}.")
        return self._paths[name]


def _make_step(
    name: str, given: Any, launch: Any, folder: Path, outputs: Mapping[str, str]
) -> DeclaredStep:
    if not _NAME.fullmatch(name) or name in RESERVED:
        raise ConfigError(
            f"{name!r} cannot be a step's name: use small letters, digits, _ and -, and none of "
            f"{', '.join(RESERVED)}."
        )
    _check_keys(given, STEP_KEYS, "the step")
    kind = KINDS.get(given.get("kind"))
    if kind is None:
        word = given.get("kind")
        raise ConfigError(f"kind {word!r} is unknown{closest(str(word), KINDS)}.")
    common = {**outputs, "folder": str(folder), "python": sys.executable}
    output = given.get("output", f"{folder / name}{kind.suffix}")
    if not isinstance(output, str) or not output:
        raise ConfigError(f"output is {output!r}, not a path.")
    output = _ReferenceResolver({"folder": str(folder)}).resolve(output)
    resolver = _ReferenceResolver(common | {"output": output})
    step = DeclaredStep(
        name=name,
        kind=kind,
        output=output,
        options=_section(given, "options", resolver),
        preset=given.get("preset"),
        config=_paths(given, "config", resolver),
        settings=_section(given, "settings", resolver),
        inputs=_paths(given, "inputs", resolver),
        launch=_make_launch(given, launch if kind.is_parallel else None, resolver),
        references={step: texts for step, texts in resolver.found.items() if step in outputs},
    )
    _check_step(step, "launch" in given)
    return step


def _section(given: Mapping, key: str, resolver: _ReferenceResolver) -> dict[str, Any]:
    value = given.get(key, {})
    if not isinstance(value, dict):
        raise ConfigError(f"{key} is {value!r}, not a mapping.")
    return resolver.resolve(value)


def _paths(given: Mapping, key: str, resolver: _ReferenceResolver) -> tuple[str, ...]:
    value = given.get(key, [])
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ConfigError(f"{key} is {value!r}, not a path or a list of paths.")
    return tuple(resolver.resolve(value))


def _make_launch(given: Mapping, default: Any, resolver: _ReferenceResolver) -> Launch:
    value = given.get("launch", default)
    if value is None:
        return Launch()
    _check_keys(value, LAUNCH_KEYS, "launch")
    nproc, command = value.get("nproc", 1), value.get("command", [])
    if len(value) > 1 or isinstance(nproc, bool) or not isinstance(nproc, int) or nproc < 1:
        raise ConfigError(f"launch is {value!r}: give `nproc`, 1 or more, or a `command`.")
    if not isinstance(command, list) or not all(isinstance(word, str) for word in command):
        raise ConfigError(f"launch.command is {command!r}, not a list of words. Quote numbers.")
    return Launch(nproc=nproc, command=tuple(resolver.resolve(command)))


def _check_step(step: DeclaredStep, has_launch: bool) -> None:
    kind = step.kind
    if kind.config == "none" and (step.config or step.settings):
        raise ConfigError(f"{kind.tool} takes no configuration: give its flags under `options`.")
    if kind.config != "none" and step.options:
        raise ConfigError(f"{kind.tool} takes a configuration: give its keys under `settings`.")
    if kind.config != "run" and step.preset is not None:
        raise ConfigError(f"{kind.tool} takes no preset: only training does.")
    if has_launch and not kind.is_parallel:
        raise ConfigError(f"{kind.tool} runs as one process: remove `launch`.")
    if kind.output in (step.options if kind.config == "none" else step.settings):
        raise ConfigError(f"the workflow sets {kind.output}: give `output: PATH` in the step.")
