"""The kinds of steps that a pipeline may have: one row each, nothing else knows their names."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from megatron_chimed.workflow.contents import Content


@dataclass(frozen=True, kw_only=True)
class Kind:
    """The command behind a step, and which of its options name files."""

    tool: str
    """Script in tools/."""
    words: tuple[str, ...] = ()
    """What comes before the options: a subcommand."""
    inputs: Mapping[str, Content] = field(default_factory=dict)
    """Options that name what is read; of a tool with a configuration, its dotted keys."""
    output: str
    """The option, or key, that says where the output goes."""
    makes: Content
    """What the output is."""
    suffix: str = ""
    """Of the output's name, where the declaration gives none."""
    config: Literal["none", "run", "rejection", "plain"] = "none"
    """Whether the tool takes `--config`: `run` is a `RunConfig` and `rejection` a
    `RejectionConfig`, resolved and checked before anything starts; `plain` is a YAML file that only
    the tool understands."""
    is_parallel: bool = False
    """Whether several ranks may run it."""
    is_atomic: bool = True
    """Whether the output appears only when it is complete; else it is a folder that grows."""
    resumes: bool = False
    """Whether the same command goes on where a killed one was."""
    repeated: frozenset[str] = frozenset()
    """Options with several values that are given once for each."""
    neutral: frozenset[str] = frozenset()
    """Options, or sections, that change no result beyond rounding: a step that is done stays so."""


_GRID = frozenset(
    {
        "parallel.tensor_parallel_size",
        "parallel.pipeline_parallel_size",
        # Their names in ledgers of older versions.
        "tensor-parallel-size",
        "pipeline-parallel-size",
    }
)

KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "tokenizer": Kind(
            tool="train_tokenizer.py",
            inputs={"input": "files"},
            output="output",
            makes="files",
            repeated=frozenset({"added-token"}),
        ),
        "preprocess": Kind(
            tool="preprocess_data.py",
            inputs={
                "input": "files",
                "tokenizer": "tokenizer",
                "template": "template",
                "decontaminate": "files",
            },
            output="output-prefix",
            makes="prefix",
            resumes=True,
            neutral=frozenset({"workers", "dedup-memory-mb"}),
        ),
        "merge": Kind(
            tool="merge_datasets.py",
            inputs={"inputs": "prefix"},
            output="output-prefix",
            makes="prefix",
        ),
        "import-hf": Kind(
            tool="convert_checkpoint.py",
            words=("import-hf",),
            inputs={"input": "files"},
            output="output",
            makes="checkpoint",
        ),
        "export-hf": Kind(
            tool="convert_checkpoint.py",
            words=("export-hf",),
            inputs={"checkpoint": "checkpoint"},
            output="output",
            makes="files",
        ),
        "train": Kind(
            tool="train.py",
            inputs={
                "tokenizer": "tokenizer",
                "data.train": "prefix",
                "data.valid": "prefix",
                "data.test": "prefix",
                "checkpoint.load": "checkpoint",
            },
            output="output_dir",
            makes="checkpoint",
            config="run",
            is_parallel=True,
            is_atomic=False,
            resumes=True,
            neutral=frozenset({"parallel", "logging"}),
        ),
        "generate": Kind(
            tool="generate.py",
            inputs={"checkpoint": "checkpoint", "prompts": "files", "template": "template"},
            output="output",
            makes="files",
            suffix=".jsonl",
            is_parallel=True,
            resumes=True,
            neutral=_GRID | {"max-batch"},
        ),
        "score": Kind(
            tool="score.py",
            inputs={"checkpoint": "checkpoint", "input": "files", "template": "template"},
            output="output",
            makes="files",
            suffix=".jsonl",
            is_parallel=True,
            neutral=_GRID | {"batch-tokens"},
        ),
        "rejection": Kind(
            tool="rejection_sample.py",
            inputs={
                "policy": "checkpoint",
                "reward_model": "checkpoint",
                "prompts.train": "files",
                "prompts.held_out": "files",
                "candidates.external": "files",
                "template": "template",
                "training.config": "files",
                "training.mix": "prefix",
                "training.settings.data.valid": "prefix",
            },
            output="output_dir",
            makes="checkpoint",
            config="rejection",
            is_parallel=True,
            is_atomic=False,
            resumes=True,
            neutral=frozenset(
                {
                    "inference.tensor_parallel_size",
                    "inference.pipeline_parallel_size",
                    "inference.max_batch",
                    "inference.batch_tokens",
                    "inference.timeout_seconds",
                    "training.settings.parallel",
                    "training.settings.logging",
                }
            ),
        ),
        "evaluate": Kind(
            tool="evaluate.py",
            output="output_dir",
            makes="files",
            config="plain",
            is_parallel=True,
            is_atomic=False,
            resumes=True,
        ),
    }
)
