"""Tasks from YAML: those that come along, and a user's own."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

from megatron_chimed.config.parsing import config_of
from megatron_chimed.errors import ConfigError, closest
from megatron_chimed.evaluation.judging.rubric_task import RubricTask
from megatron_chimed.evaluation.measures import Measure
from megatron_chimed.evaluation.scales.scale_task import ScaleTask
from megatron_chimed.evaluation.tasks.choice import ChoiceTask
from megatron_chimed.evaluation.tasks.entity_task import EntitiesTask
from megatron_chimed.evaluation.tasks.numeric import NumericTask
from megatron_chimed.evaluation.tasks.open_qa import OpenQATask
from megatron_chimed.evaluation.tasks.perplexity import PerplexityTask
from megatron_chimed.evaluation.tasks.safety import SafetyTask
from megatron_chimed.yaml_files import load_yaml

TASK = "task"
FOLDER = Path(__file__).with_name("shipped")
Task: TypeAlias = (
    ChoiceTask
    | OpenQATask
    | EntitiesTask
    | NumericTask
    | PerplexityTask
    | SafetyTask
    | ScaleTask
    | RubricTask
)
KINDS: Mapping[str, type[Task]] = MappingProxyType(
    {
        "choice": ChoiceTask,
        "open_qa": OpenQATask,
        "entities": EntitiesTask,
        "numeric": NumericTask,
        "perplexity": PerplexityTask,
        "safety": SafetyTask,
        "scale": ScaleTask,
        "rubric": RubricTask,
    }
)


def shipped_tasks() -> dict[str, Path]:
    """The tasks that come along, by name; their data do not."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


def load_task(entry: Mapping[str, Any], named: str) -> Task:
    """A task from an entry of an evaluation's configuration.

    Args:
        entry: `task` is the name of a shipped one or a YAML file; all other keys replace its own.
            Without `task` the entry is the whole task.
        named: Where the entry is, for messages.

    Raises:
        ConfigError: There is no such task, or a key or value is wrong.
    """
    values = dict(entry)
    source = values.pop(TASK, None)
    if source is not None:
        path = _path(source, named)
        values = {**load_yaml(path), **values}
        values.setdefault("name", path.stem)
        named = str(path)
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ConfigError(
            f"{named}: kind is {kind!r}{closest(str(kind), KINDS)}; kinds of tasks are "
            f"{', '.join(KINDS)}."
        )
    return config_of(values, KINDS[kind], named=named)


def load_measures(entries: Sequence[Mapping[str, Any]]) -> list[Measure]:
    """The measures of all tasks of a configuration, with their data.

    Raises:
        ConfigError: A task is wrong, or two have one name.
        DataError: Files of a task cannot be used.
    """
    tasks = [load_task(entry, f"tasks[{number}]") for number, entry in enumerate(entries)]
    names = [task.name for task in tasks]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(
            f"two tasks are named {', '.join(twice)}. Give one of them another `name`."
        )
    measures: list[Measure] = []
    for task in tasks:
        measures.extend(task.measures())
    return measures


def _path(source: Any, named: str) -> Path:
    shipped = shipped_tasks()
    if isinstance(source, str) and source in shipped:
        return shipped[source]
    if isinstance(source, str) and source.endswith((".yaml", ".yml")):
        return Path(source)
    raise ConfigError(
        f"{named}: task is {source!r}{closest(str(source), shipped)}. Give a YAML file, or one of "
        f"{', '.join(shipped)}."
    )
