"""The configuration of a run: every package's section, from YAML and dotted overrides."""

import argparse
import contextlib
import dataclasses
import io
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import jsonargparse
import yaml

from megatron_chimed.checkpoint.config import CheckpointConfig
from megatron_chimed.data.datasets.config import DataConfig
from megatron_chimed.engine import (
    ParallelConfig,
    ParallelLayout,
    check_batch,
    plan_layout,
)
from megatron_chimed.errors import ConfigError, reworded
from megatron_chimed.field_types import check_types
from megatron_chimed.kernels import KernelConfig
from megatron_chimed.model import LoraConfig, ModelConfig
from megatron_chimed.observe.logger import LogConfig
from megatron_chimed.optim import OptimConfig
from megatron_chimed.training.config import TrainConfig
from megatron_chimed.training.objectives.dpo import DPOConfig
from megatron_chimed.yaml_files import UniqueKeyLoader

Config = TypeVar("Config")
# How jsonargparse says that a value has another type, and how its types are called here.
_WRONG_TYPE = re.compile(
    r'Parser key "(?P<key>[^"]+)": (?:Expected a (?P<one>.+?)\. Got value: (?P<value>.+)|'
    r"Does not validate against any of the Union subtypes Subtypes: \[(?P<several>.+?)\] Errors: .+"
    r" Given value: (?P<given>.+))"
)
_TYPE_NAMES = (
    (r", <class 'NoneType'>", " or null"),
    (r"<class '(?:[\w.]+\.)?(\w+)'>", r"\1"),
    (r"typing\.Literal\[(.*)\]", r"one of \1"),
    (r"tuple\[(\S+), \.\.\.\]", r"a list of \1"),
    (r"\bbool\b", "true or false"),
)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run."""

    stage: Literal["pretrain", "sft", "reward", "dpo"] = "pretrain"
    """What is trained: `pretrain` is next-token loss over joined documents, `sft` over the answers
    of packed conversations, `reward` a score that ranks answers as people did, `dpo`
    the policy itself from such rankings."""
    output_dir: str
    """The run's folder: checkpoints, metrics.jsonl, TensorBoard files, loss_curve.png."""
    tokenizer: str
    """A sentencepiece `tokenizer.model`, or a Hugging Face folder that holds one."""
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    """The architecture; `--preset` fills it."""
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)
    """With a rank, adapters are trained beside the frozen weights of checkpoint.load."""
    parallel: ParallelConfig = dataclasses.field(default_factory=ParallelConfig)
    """How it is spread over ranks."""
    data: DataConfig
    """What it reads."""
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    """Optimizer and learning rate."""
    training: TrainConfig
    """Steps, batch, precision, validation."""
    dpo: DPOConfig = dataclasses.field(default_factory=DPOConfig)
    """The objective of `stage: dpo`; its reference is the model of checkpoint.load."""
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    """Saving and resuming."""
    logging: LogConfig = dataclasses.field(default_factory=LogConfig)
    """Reporting."""
    kernels: KernelConfig = dataclasses.field(default_factory=KernelConfig)
    """Fused ops or plain torch."""

    def __post_init__(self) -> None:
        """Gives a reward model its head.

        Raises:
            ConfigError: `model.head` asks for it in another stage; DPO without a reference, or
            adapters without a model.
        """
        for field in dataclasses.fields(self):
            if dataclasses.is_dataclass(section := getattr(self, field.name)):
                check_types(section, field.name)
        if self.lora.rank and self.checkpoint.load is None:
            raise ConfigError(
                f"lora.rank is {self.lora.rank}: adapters are trained beside the frozen weights of "
                "a model, but checkpoint.load names none. Set --checkpoint.load to it."
            )
        if self.stage == "dpo" and self.checkpoint.load is None:
            raise ConfigError(
                "stage dpo starts from a model, which stays its reference, but checkpoint.load "
                "names none. Set --checkpoint.load to the SFT model."
            )
        if self.stage == "reward":
            object.__setattr__(self, "model", dataclasses.replace(self.model, head="score"))
        elif self.model.head == "score":
            raise ConfigError(
                f"model.head is score, but stage {self.stage} learns words. Remove it, or set "
                "`stage: reward`."
            )

    @property
    def data_stage(self) -> str:
        """What its data must have been preprocessed for."""
        return "preference" if self.stage in ("reward", "dpo") else self.stage

    def plan_layout(self, world_size: int) -> ParallelLayout:
        """Checks everything that no section can check alone, and gives the layout.

        Raises:
            ConfigError: Sections contradict each other or the number of ranks.
        """
        model, data = self.model, self.data
        if data.seq_length > model.max_position_embeddings:
            raise ConfigError(
                f"data.seq_length ({data.seq_length}) is longer than model.max_position_embeddings "
                f"({model.max_position_embeddings}): later positions mean nothing to the model. "
                f"Set --data.seq_length {model.max_position_embeddings} or less."
            )
        layout = plan_layout(
            self.parallel,
            world_size=world_size,
            sizes=model.sizes(data.seq_length),
        )
        check_batch(
            layout,
            micro_batch_size=self.training.micro_batch_size,
            global_batch_size=self.training.global_batch_size,
        )
        return layout

    def plain(self) -> dict[str, Any]:
        """The configuration as dictionaries, lists and plain values."""
        return plain(dataclasses.asdict(self))

    def save(self, path: str | os.PathLike) -> None:
        """Writes it as YAML that `--config` reads back."""
        text = yaml.safe_dump(self.plain(), allow_unicode=True, sort_keys=False)
        Path(path).write_text(text, encoding="utf-8")


def setting_names() -> frozenset[str]:
    """Every setting of a training run, such as `optim.lr`."""
    sections = [f for f in dataclasses.fields(RunConfig) if dataclasses.is_dataclass(f.type)]
    return frozenset(f"{s.name}.{f.name}" for s in sections for f in dataclasses.fields(s.type))


def settings_called(
    name: Callable[[str], str | None],
) -> contextlib.AbstractContextManager[None]:
    """`errors.reworded` for all settings of a training run.

    Code that several commands share names them as tools/train.py does: `--optim.lr`.

    Args:
        name: From `optim.lr` to what the command at hand calls it, None where it has nothing such.
    """
    return reworded({key: name(key) for key in setting_names()})


def plain(value: Any) -> Any:
    """The value with plain dictionaries and lists, as YAML and JSON have them."""
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return value


class _PlainHelp(jsonargparse.DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Leaves the commands of a description as they are, to be pasted."""


def make_parser(
    prog: str, description: str, epilog: str = "", *, kind: type = RunConfig
) -> jsonargparse.ArgumentParser:
    """A parser of `--config FILE` and `--section.field VALUE` for a configuration."""
    # Or `--help` would not show the sentence under each field.
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} --config FILE [--section.field VALUE ...]",
        description=description,
        epilog=epilog,
        formatter_class=_PlainHelp,
        exit_on_error=False,
        default_env=False,
    )
    parser.add_argument("--config", action="config", help="YAML file; may be given several times")
    parser.add_class_arguments(kind)
    return parser


def parse_run_config(parser: jsonargparse.ArgumentParser, argv: Sequence[str]) -> RunConfig:
    """`parse_config` of a training run."""
    return parse_config(parser, argv, RunConfig)


def config_of(
    values: Mapping[str, Any], parser: jsonargparse.ArgumentParser, named: str, kind: type[Config]
) -> Config:
    """The configuration that a file with these keys would give.

    Args:
        values: By key.
        parser: From `make_parser`.
        named: What they are from, for messages.
        kind: As in `parse_config`.

    Raises:
        ConfigError: As of `parse_config`.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "settings.yaml")
        path.write_text(yaml.safe_dump(dict(values), allow_unicode=True), encoding="utf-8")
        try:
            return parse_config(parser, ["--config", str(path)], kind)
        except ConfigError as error:
            raise ConfigError(str(error).replace(str(path), named)) from None


def parse_config(
    parser: jsonargparse.ArgumentParser, argv: Sequence[str], kind: type[Config]
) -> Config:
    """Reads the command line and the files it names.

    Args:
        parser: From `make_parser`.
        argv: Without the command's own flags.
        kind: The class, whose sections are dataclasses.

    Raises:
        ConfigError: An unknown key, a missing or wrong value; what jsonargparse or a section says.
    """
    files = _config_files(argv)
    for file in files:
        _check_file(file, kind)
    noise = io.StringIO()  # jsonargparse prints its usage before it raises
    try:
        with contextlib.redirect_stderr(noise):
            parsed = parser.parse_args(list(argv))
            _check_sections(parsed, kind)
            built = parser.instantiate(parsed)
    except (jsonargparse.ArgumentError, ValueError, TypeError, yaml.YAMLError) as error:
        read = f" (read: {', '.join(files)})" if files else ""
        raise ConfigError(
            f"{_one_line(error)}{read}. `{parser.prog} --help` lists every key."
        ) from None
    return kind(**{field.name: getattr(built, field.name) for field in dataclasses.fields(kind)})


def _config_files(argv: Sequence[str]) -> list[str]:
    given = [word.removeprefix("--config=") for word in argv if word.startswith("--config=")]
    pairs = zip(argv, argv[1:], strict=False)
    return given + [value for flag, value in pairs if flag == "--config"]


def _check_file(path: str, kind: type) -> None:
    """Refuses a file that is no YAML mapping of our sections, by its name."""
    try:
        content = UniqueKeyLoader(Path(path).read_text(encoding="utf-8")).get_single_data()
    except OSError as error:
        raise ConfigError(
            f"config file {path} cannot be read: {error.strerror}. Check --config."
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path} is not YAML: {_one_line(error)}.") from None
    known = {field.name for field in dataclasses.fields(kind)}
    if not isinstance(content, dict):
        raise ConfigError(
            f"config file {path} holds {type(content).__name__}, not sections such as `model:`."
        )
    unknown = sorted(str(key) for key in content if key not in known)
    if unknown:
        raise ConfigError(
            f"config file {path} has unknown keys: {', '.join(unknown)}. "
            f"The sections are {', '.join(sorted(known))}."
        )


def _check_sections(parsed: jsonargparse.Namespace, kind: type) -> None:
    for field in dataclasses.fields(kind):
        value = parsed[field.name]
        if dataclasses.is_dataclass(field.type) and not isinstance(value, jsonargparse.Namespace):
            raise ConfigError(
                f"{field.name} is {value!r}, but it is a section: give its keys, indented below it."
            )


def _one_line(error: Exception) -> str:
    for cause in (error, error.__cause__, error.__context__):
        if isinstance(cause, ConfigError):
            return str(cause)
    text = " ".join(str(error).split()).rstrip(".")
    found = _WRONG_TYPE.search(text)
    if found is None:
        return text
    kinds = found["one"] or found["several"]
    for old, new in _TYPE_NAMES:
        kinds = re.sub(old, new, kinds)
    return f"--{found['key']} is {found['value'] or found['given']}: it must be {kinds}"
