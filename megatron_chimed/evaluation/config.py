"""Settings of an evaluation: models, tasks, and where they run."""

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from megatron_chimed.config.inference import InferenceConfig
from megatron_chimed.errors import ConfigError

_NAME = re.compile(r"[\w.+-]+")


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """One model: a checkpoint of ours, a Hugging Face folder, or an endpoint."""

    SECTION: ClassVar[str] = "models"
    SOURCES: ClassVar[tuple[str, ...]] = ("checkpoint", "folder", "endpoint")

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

    @property
    def named(self) -> str:
        """Where it is in the configuration, for messages."""
        return f"{self.SECTION}: {self.name}"

    def __post_init__(self) -> None:
        """Checks that there is one source, and that the name can be one of a file."""
        if not _NAME.fullmatch(self.name) or self.name.startswith("."):
            raise ConfigError(
                f"{self.SECTION}: {self.name!r} cannot be a model's name: use letters, digits, _, "
                "., + and -."
            )
        given = [key for key in self.SOURCES if getattr(self, key)]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise ConfigError(
                f"{self.named} has {found}. Give exactly one of "
                f"{', '.join(self.SOURCES[:-1])} and {self.SOURCES[-1]}."
            )
        if self.endpoint:
            self._check_endpoint(self.endpoint)

    def _check_endpoint(self, url: str) -> None:
        if not self.model:
            raise ConfigError(f"{self.named} has an endpoint but no model. Name it.")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise ConfigError(
                f"{self.named}: the endpoint is not a base URL such as http://127.0.0.1:8000/v1."
            )
        if "@" in parts.netloc:  # reports show the URL
            raise ConfigError(
                f"{self.named}: the endpoint's URL holds a name or password. Put the key "
                "into an environment variable, and its name under api_key_variable."
            )
        if self.template is not None or self.add_bos is not None:
            raise ConfigError(
                f"{self.named}: an endpoint encodes prompts itself. Remove template and add_bos."
            )
        for key, least in (("concurrency", 1), ("max_retries", 0)):
            if getattr(self, key) < least:
                raise ConfigError(
                    f"{self.named}: {key} is {getattr(self, key)}: set {least} or more."
                )
        if not 0 < self.timeout_seconds < math.inf:
            raise ConfigError(
                f"{self.named}: timeout_seconds is {self.timeout_seconds:g}: set a number above 0."
            )


@dataclass(frozen=True, kw_only=True)
class JudgeEntry(ModelEntry):
    """A model that judges the answers of others, or people who do."""

    SECTION: ClassVar[str] = "judges"
    SOURCES: ClassVar[tuple[str, ...]] = ("checkpoint", "folder", "endpoint", "people")

    people: str | None = None
    """Folder of sheets that people fill in, one for each measure; missing ones are written."""
    measures: tuple[str, ...] = ()
    """Names of the measures to judge; empty: those of the kinds open_qa, safety and rubric."""
    aspects: tuple[str, ...] = ("safety", "professionalism", "fluency")
    """What is compared, in the order in which it decides."""
    attempts: int = 3
    """Times that a judge is asked until its answer has a verdict."""
    max_pairs: int = 0
    """Largest number of pairs of answers of every two models; 0: all."""
    max_new_tokens: int = 1024
    """Longest answer of the judge."""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        super().__post_init__()
        for key, least in (("attempts", 1), ("max_pairs", 0), ("max_new_tokens", 1)):
            if getattr(self, key) < least:
                raise ConfigError(
                    f"{self.named}: {key} is {getattr(self, key)}: set {least} or more."
                )
        if not self.aspects or len(set(self.aspects)) != len(self.aspects):
            raise ConfigError(f"{self.named}: list each aspect once, and at least one.")
        if taken := sorted(
            {"id", "priority", "question", "answer_a", "answer_b", ""} & {*self.aspects}
        ):
            raise ConfigError(f"{self.named}: {taken[0]!r} cannot be an aspect's name.")


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
    judges: tuple[JudgeEntry, ...] = ()
    """Models or people who judge the answers once all models have answered."""
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
        for key in ("models", "judges"):
            names = [entry.name for entry in getattr(self, key)]
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ConfigError(f"{key}: {', '.join(twice)} is there twice. Names must differ.")
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}: set 0 or more.")


def public_settings(entry: ModelEntry) -> dict[str, Any]:
    """What a report says about a model's source: all that is not the default."""
    default = {field.name: field.default for field in dataclasses.fields(entry)}
    values = dataclasses.asdict(entry)
    return {key: value for key, value in values.items() if value != default[key]}
