"""The settings of a preprocessing run, and the plan made from them before it starts."""

import dataclasses
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from megatron_chimed.data.cleaning.cleaner import cleaning_identity
from megatron_chimed.data.cleaning.config import CleaningConfig
from megatron_chimed.data.datasets.indexed import dtype_for_vocab
from megatron_chimed.data.datasets.sidecar import Rendering
from megatron_chimed.data.formats.cmedqa2 import CMEDQA2
from megatron_chimed.data.formats.columns import ColumnMap, column_map, refuse_beside_columns
from megatron_chimed.data.formats.format import ReadOptions
from megatron_chimed.data.formats.registry import AUTO, FORMATS
from megatron_chimed.data.preprocessing.block_encoder import Recipe
from megatron_chimed.data.preprocessing.journal import check_output_prefix
from megatron_chimed.data.preprocessing.quarantine import check_bad_rate
from megatron_chimed.data.preprocessing.stage_encoder import KEEP_LABELS, StageConfig
from megatron_chimed.data.preprocessing.writer import STAGES, SUFFIXES, output_path
from megatron_chimed.data.reading import MAX_ROW_BYTES, InputFile, expand_inputs, format_of
from megatron_chimed.data.reading.encodings import UTF8, encoding_named
from megatron_chimed.data.templates import load_template, require_fit, template_for
from megatron_chimed.data.templates.encoding import TRUNCATIONS
from megatron_chimed.data.templates.named import names_for, no_template_reason
from megatron_chimed.data.templates.template import TARGETS
from megatron_chimed.errors import ConfigError, DataError
from megatron_chimed.tokenizer import Tokenizer, load_tokenizer

STAGE_SETTINGS = {
    "append_eod": ("pretrain",),
    "keep_blank_texts": ("pretrain",),
    "keep_labels": ("pretrain", "sft"),
    "template": ("sft", "preference"),
    "targets": ("sft",),
    "seq_length": ("sft", "preference"),
    "truncation": ("sft", "preference"),
}
"""The stages in which a setting has an effect."""


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """Settings of tools/preprocess_data.py."""

    inputs: tuple[str, ...]
    """Corpus files, folders and patterns, in order."""

    tokenizer: str
    """A tokenizer.model or tokenizer.json, or a Hugging Face folder that contains one."""

    output_prefix: str
    """Path of the output without `.bin` and `.idx`."""

    format: str = AUTO
    """One of `formats.registry.FORMATS`, or `auto` to detect the format of each file."""

    text_key: str = "text"
    """Key of the text in JSON rows."""

    columns: tuple[str, ...] = ()
    """What the columns of the user's own data are, as `role=column`; empty: a format says it."""

    encoding: str = UTF8
    """Encoding of the input files."""

    ignore_keys: tuple[str, ...] = ()
    """Keys of rows that are read as if they were not there."""

    strict_keys: bool = False
    """Whether a key that nothing reads makes a row malformed."""

    drop_reasoning: bool = False
    """Whether reasoning before an answer is left out."""

    keep_labels: str | None = None
    """`good`: pretrain and sft take the judged answers that are good; None: they refuse them."""

    stage: str = "pretrain"
    """What the tokens are for, one of `writer.STAGES`."""

    append_eod: bool = True
    """Whether each pretraining document ends with the tokenizer's end of sequence."""

    keep_blank_texts: bool = False
    """Whether a pretraining text of white space alone is a document, as in Megatron-LM."""

    template: str | None = None
    """Name or YAML file of a chat template; None: that of the tokenizer's family. Pretrain uses
    none."""

    targets: str = "answers"
    """Which part of a conversation is supervised, one of `templates.template.TARGETS`."""

    seq_length: int | None = None
    """Maximum tokens of a conversation, or of all answers to a prompt together, each with the
    prompt before it, as training packs them; None: no limit."""

    truncation: str = "drop"
    """What happens to a conversation whose first turn is longer, or to such answers; one of
    `TRUNCATIONS`."""

    cleaning: CleaningConfig = field(default_factory=CleaningConfig)
    """What is changed and removed before encoding."""

    max_bad_rate: float = 0.0
    """Share of rows that may be malformed and are then skipped; 0: the first one is an error."""

    max_row_bytes: int = MAX_ROW_BYTES
    """Maximum size of a row in bytes; a longer one is malformed and never held in memory."""

    workers: int = 1
    """Number of encoding processes."""

    overwrite: bool = False
    """Replace existing output once the new output is complete."""

    def __post_init__(self) -> None:
        """Checks the settings.

        Raises:
            ConfigError: One is out of range.
        """
        choices = {"stage": STAGES, "targets": TARGETS, "truncation": TRUNCATIONS}
        choices["format"] = (AUTO, *FORMATS)
        choices["keep_labels"] = (None, *KEEP_LABELS)
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"{_flag(name)} {getattr(self, name)!r} is none of "
                    f"{', '.join(filter(None, known))}."
                )
        for name in ("workers", "max_row_bytes", "seq_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} is {value}; give at least 1.")
        check_bad_rate(self.max_bad_rate)
        if not self.inputs:
            raise ConfigError("--input names no file.")
        check_output_prefix(self.output_prefix)
        encoding_named(self.encoding)
        if self.column_map is not None:
            refuse_beside_columns(self)
        self._check_stage()

    @property
    def column_map(self) -> ColumnMap | None:
        """What `columns` says, None if it is empty."""
        return column_map(self.columns)

    def _check_stage(self) -> None:
        for name, stages in STAGE_SETTINGS.items():
            if self.stage not in stages and getattr(self, name) != getattr(type(self), name):
                raise ConfigError(
                    f"{'--no-append-eod' if name == 'append_eod' else _flag(name)} has no effect "
                    f"with --stage {self.stage}. Remove it, or choose --stage "
                    f"{' or '.join(stages)}."
                )
        if self.seq_length is None and self.truncation != type(self).truncation:
            raise ConfigError(
                f"--truncation {self.truncation} has no effect without --seq-length: "
                "no conversation is too long. Add --seq-length, or remove --truncation."
            )

    @property
    def stage_config(self) -> StageConfig:
        """The settings of the stage encoder."""
        names = [item.name for item in dataclasses.fields(StageConfig)]
        return StageConfig(**{name: getattr(self, name) for name in names})

    def command(self) -> str:
        """The command line of this run, without flags that do not affect its output."""
        words = ["tools/preprocess_data.py", "--input", *self.inputs]
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if item.name in ("tokenizer", "output_prefix"):
                words += [_flag(item.name), value]
            elif item.name not in ("inputs", "workers", "overwrite", "cleaning"):
                words += _words(item.name, value, item.default)
        for item in dataclasses.fields(self.cleaning):
            if item.name == "encoding":  # the same flag as that of the input files
                continue
            words += _words(item.name, getattr(self.cleaning, item.name), item.default)
        return shlex.join(words)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _words(name: str, value: Any, default: Any) -> list[str]:
    if value == default:
        return []
    if isinstance(value, bool):
        return [_flag(name) if value else f"--no-{name.replace('_', '-')}"]
    return [_flag(name), *map(str, value if isinstance(value, tuple) else [value])]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that the output of a run depends on."""

    config: PreprocessConfig
    """The settings."""

    tokenizer: Tokenizer
    """The loaded tokenizer."""

    recipe: Recipe
    """What the workers do."""

    fingerprint: dict[str, Any]
    """What must be equal for a killed run to be resumed, by a readable name."""

    rendering: Rendering | None
    """How conversations become tokens; None in pretraining."""

    @property
    def inputs(self) -> tuple[InputFile, ...]:
        """The input files."""
        return self.recipe.inputs

    @property
    def total_bytes(self) -> int:
        """Size of all input files."""
        return sum(item.size for item in self.inputs)

    @property
    def dtype(self) -> np.dtype:
        """Element type of the ids."""
        return dtype_for_vocab(self.tokenizer.vocab_size)

    def check_inputs_unchanged(self) -> None:
        """Verifies that no input file changed since the start.

        Raises:
            DataError: A file changed.
        """
        now = _stat_inputs(self.recipe)
        for before, after in zip(self.fingerprint["inputs"], now, strict=True):
            if before != after:
                raise DataError(
                    f"{before[0]} changed while it was read (size and time were {before[1:]}, now "
                    f"{after[1:]}). Run the command again when nothing writes to it."
                )


def make_plan(config: PreprocessConfig) -> Plan:
    """Loads the tokenizer and examines the inputs; writes nothing.

    Raises:
        ConfigError: Inputs, tokenizer or template do not exist.
        DataError: The format of an input is not recognised.
    """
    tokenizer = load_tokenizer(config.tokenizer)
    rendering = None
    if config.stage != "pretrain":
        config = _with_template(config, tokenizer)
    if config.template is not None:
        template = load_template(config.template)
        require_fit(template, tokenizer)
        rendering = Rendering(
            template=config.template,
            template_identity=template.identity,
            targets=config.targets if config.stage == "sft" else "answers",
            seq_length=config.seq_length,
            truncation=config.truncation,
        )
    inputs = _inputs(config)
    recipe = Recipe(
        tokenizer=config.tokenizer,
        inputs=inputs,
        formats=tuple(
            format_of(item, config.format, text_key=config.text_key).name for item in inputs
        ),
        reading=ReadOptions(
            text_key=config.text_key,
            strict_keys=config.strict_keys,
            drop_reasoning=config.drop_reasoning,
        ),
        stage=config.stage_config,
        cleaning=config.cleaning,
    )
    return Plan(
        config=config,
        tokenizer=tokenizer,
        recipe=recipe,
        rendering=rendering,
        fingerprint=_fingerprint(config, recipe, tokenizer, rendering),
    )


def _with_template(config: PreprocessConfig, tokenizer: Tokenizer) -> PreprocessConfig:
    """The settings with the template of the tokenizer's family, if they name none.

    Raises:
        ConfigError: The family is unknown.
    """
    if config.template is not None:
        return config
    template = template_for(tokenizer)
    if template is None and (reason := no_template_reason(tokenizer)):
        raise ConfigError(f"--stage {config.stage}: {reason}")
    if template is None:
        raise ConfigError(
            f"--stage {config.stage} needs --template: {', '.join(names_for(tokenizer))} or a YAML "
            "file."
        )
    return dataclasses.replace(config, template=template.name)


def _inputs(config: PreprocessConfig) -> tuple[InputFile, ...]:
    """The input files, without files that an earlier run of this prefix wrote beside them."""
    suffixes = {suffix for stage in SUFFIXES.values() for suffix in stage}
    own = {output_path(config.output_prefix, suffix).resolve() for suffix in suffixes}
    found = expand_inputs(
        config.inputs,
        text_key=config.text_key,
        encoding=config.encoding,
        column_map=config.column_map,
        ignored_keys=config.ignore_keys,
    )
    inputs = tuple(item for item in found if item.path.resolve() not in own)
    if not inputs:
        raise ConfigError("--input names only files of --output-prefix. Name a corpus.")
    return inputs


def _fingerprint(
    config: PreprocessConfig, recipe: Recipe, tokenizer: Tokenizer, rendering: Rendering | None
) -> dict[str, Any]:
    return {
        # Raised when equal inputs would give other bytes: a run of another value starts afresh.
        "program": "0.3.0",
        "inputs": _stat_inputs(recipe),
        "formats": recipe.formats,
        "reading options": [
            *(recipe.reading.text_key, config.max_row_bytes),
            *(recipe.reading.strict_keys, recipe.reading.drop_reasoning),
            *(config.encoding, list(config.columns), sorted(config.ignore_keys)),
        ],
        "tokenizer": [tokenizer.identity, dataclasses.asdict(tokenizer.special)],
        "stage": dataclasses.asdict(recipe.stage),
        "template": rendering and rendering.template_identity,
        # Limits that only decide between a result and an error may be raised on resuming.
        "cleaning": cleaning_identity(
            dataclasses.replace(
                recipe.cleaning,
                dedup_memory_mb=CleaningConfig.dedup_memory_mb,
                max_contaminated=CleaningConfig.max_contaminated,
            )
        ),
    }


def _stat_inputs(recipe: Recipe) -> list[list[Any]]:
    """Path, size and time of every file that is read."""
    paths = [item.path for item in recipe.inputs]
    for item, name in zip(recipe.inputs, recipe.formats, strict=True):
        if name == CMEDQA2.name:  # its rows refer to texts in tables beside it
            paths += [item.path.with_name(f"{table}.csv") for table in ("question", "answer")]
    return [_stat(path) for path in dict.fromkeys(paths)]


def _stat(path: Path) -> list[Any]:
    if not path.exists():  # a table that no row refers to
        return [str(path), 0, 0]
    stat = path.stat()
    return [str(path), stat.st_size, stat.st_mtime_ns]
