"""Settings of an evaluation: models, tasks, and where they run."""

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from megatron_chimed.config.inference import InferenceConfig
from megatron_chimed.errors import ConfigError

_NAME = re.compile(r"[\w.+-]+")


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """One model: a checkpoint of ours, a Hugging Face folder, or an endpoint."""

    name: str
    """Its name in the report and in file names."""
    checkpoint: str | None = None
    """A checkpoint, or a run folder, of which the newest checkpoint is used."""
    folder: str | None = None
    """A Hugging Face folder, run with transformers on one process."""
    endpoint: str | None = None
    """Base URL of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1."""
    model: str | None = None
    """Name of the model at the endpoint."""
    api_key_variable: str | None = None
    """Environment variable that holds the endpoint's key."""
    completes_text: bool = False
    """Whether an endpoint has /completions for prompts that are no conversation; false: they are
    sent as a user's message."""
    concurrency: int = 4
    """Requests that an endpoint gets at once."""
    timeout_seconds: float = 120.0
    """How long an endpoint may keep a request waiting, in seconds."""
    max_retries: int = 5
    """Times that a request to an endpoint is repeated after an error that may pass."""
    template: str | None = None
    """Chat template, by name or as a YAML file; needed only if the model names none."""
    add_bos: bool | None = None
    """Whether text starts with the beginning of sequence; null: as the tokenizer says."""

    def __post_init__(self) -> None:
        """Checks that there is one source, and that the name can be one of a file."""
        if not _NAME.fullmatch(self.name) or self.name.startswith("."):
            raise ConfigError(
                f"models: {self.name!r} cannot be a model's name: use letters, digits, _, ., + "
                "and -."
            )
        given = [key for key in ("checkpoint", "folder", "endpoint") if getattr(self, key)]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise ConfigError(
                f"models: {self.name} has {found}. Give exactly one of checkpoint, folder and "
                "endpoint."
            )
        if self.endpoint:
            self._check_endpoint(self.endpoint)

    def _check_endpoint(self, url: str) -> None:
        if not self.model:
            raise ConfigError(f"models: {self.name} has an endpoint but no model. Name it.")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise ConfigError(
                f"models: {self.name}: the endpoint is not a base URL such as "
                "http://127.0.0.1:8000/v1."
            )
        if "@" in parts.netloc:  # reports show the URL
            raise ConfigError(
                f"models: {self.name}: the endpoint's URL holds a name or password. Put the key "
                "into an environment variable, and its name under api_key_variable."
            )
        if self.template is not None or self.add_bos is not None:
            raise ConfigError(
                f"models: {self.name}: an endpoint encodes prompts itself. Remove template and "
                "add_bos."
            )
        for key, least in (("concurrency", 1), ("max_retries", 0)):
            if getattr(self, key) < least:
                raise ConfigError(
                    f"models: {self.name}: {key} is {getattr(self, key)}: set {least} or more."
                )
        if not 0 < self.timeout_seconds < math.inf:
            raise ConfigError(
                f"models: {self.name}: timeout_seconds is {self.timeout_seconds:g}: set a number "
                "above 0."
            )


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Models, tasks, and where they run."""

    output_dir: str
    """Folder of the report and of all prompts, answers and scores."""
    models: tuple[ModelEntry, ...]
    """The models, in the order of the report."""
    tasks: tuple[dict[str, Any], ...]
    """The tasks. `task` is the name of one that comes along, or a YAML file; all other keys replace
    the task's own."""
    device: Literal["auto", "cuda", "rocm", "cpu"] = "auto"
    """Where checkpoints and folders run, as in tools/train.py."""
    seed: int = 1234
    """Seed of draws and of bootstrap intervals."""
    inference: InferenceConfig = InferenceConfig()
    """Parallel layout and batches of checkpoints."""

    def __post_init__(self) -> None:
        """Checks that there is something to do, and names."""
        for name in ("models", "tasks"):
            if not getattr(self, name):
                raise ConfigError(f"{name} is empty: list at least one.")
        names = [model.name for model in self.models]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"models: {', '.join(twice)} is there twice. Names must differ.")
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}: set 0 or more.")


def public_settings(entry: ModelEntry) -> dict[str, Any]:
    """What a report says about a model's source: all that is not the default."""
    default = {field.name: field.default for field in dataclasses.fields(entry)}
    values = dataclasses.asdict(entry)
    return {key: value for key, value in values.items() if value != default[key]}
