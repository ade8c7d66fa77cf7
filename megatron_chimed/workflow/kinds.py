"""The kinds of steps that a workflow may have: the only place that knows their names."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from megatron_chimed.workflow.artifacts import ArtifactType


@dataclass(frozen=True, kw_only=True)
class StepKind:
    """The command behind a step, and which of its options name files."""

    tool: str
    """Script in tools/."""
    subcommand: tuple[str, ...] = ()
    """Arguments before the options."""
    inputs: Mapping[str, ArtifactType] = field(default_factory=dict)
    """Options that name inputs, or dotted keys if the tool takes a configuration."""
    output: str
    """The option, or key, that names the output."""
    output_type: ArtifactType
    """What the output is."""
    suffix: str = ""
    """Suffix of the default output path."""
    config: Literal["none", "run", "rejection", "plain"] = "none"
    """What `--config` of the tool is: `run` a `RunConfig`, `rejection` a `RejectionConfig`, both
    resolved and checked before anything starts; `plain` a YAML file that only the tool reads."""
    is_parallel: bool = False
    """Whether it may run on several ranks."""
    is_atomic: bool = True
    """Whether the output appears only when complete; otherwise it is a folder that grows."""
    resumes: bool = False
    """Whether the same command resumes a killed one."""
    repeated: frozenset[str] = frozenset()
    """List options that are repeated for each value."""
    neutral: frozenset[str] = frozenset()
    """Options, or sections, that change no result beyond rounding; changing them is not stale."""


_GRID = frozenset(
    {
        "parallel.tensor_parallel_size",
        "parallel.pipeline_parallel_size",
        # Their names in ledgers of older versions.
        "tensor-parallel-size",
        "pipeline-parallel-size",
    }
)

KINDS: Mapping[str, StepKind] = MappingProxyType(
    {
        "tokenizer": StepKind(
            tool="train_tokenizer.py",
            inputs={"input": "files"},
            output="output",
            output_type="files",
            repeated=frozenset({"added-token"}),
        ),
        "preprocess": StepKind(
            tool="preprocess_data.py",
            inputs={
                "input": "files",
                "tokenizer": "tokenizer",
                "template": "template",
                "decontaminate": "files",
            },
            output="output-prefix",
            output_type="prefix",
            resumes=True,
            neutral=frozenset({"workers", "dedup-memory-mb"}),
        ),
        "merge": StepKind(
            tool="merge_datasets.py",
            inputs={"inputs": "prefix"},
            output="output-prefix",
            output_type="prefix",
        ),
        "import-hf": StepKind(
            tool="convert_checkpoint.py",
            subcommand=("import-hf",),
            inputs={"input": "files"},
            output="output",
            output_type="checkpoint",
        ),
        "export-hf": StepKind(
            tool="convert_checkpoint.py",
            subcommand=("export-hf",),
            inputs={"checkpoint": "checkpoint"},
            output="output",
            output_type="files",
        ),
        "train": StepKind(
            tool="train.py",
            inputs={
                "tokenizer": "tokenizer",
                "data.train": "prefix",
                "data.valid": "prefix",
                "data.test": "prefix",
                "checkpoint.load": "checkpoint",
            },
            output="output_dir",
            output_type="checkpoint",
            config="run",
            is_parallel=True,
            is_atomic=False,
            resumes=True,
            neutral=frozenset(
                {
                    "device",
                    "parallel",
                    "logging",
                    "data.verify",
                    "model.loss_chunk_tokens",
                    "optim.offload",
                }
            ),
        ),
        "generate": StepKind(
            tool="generate.py",
            inputs={"checkpoint": "checkpoint", "prompts": "files", "template": "template"},
            output="output",
            output_type="files",
            suffix=".jsonl",
            is_parallel=True,
            resumes=True,
            neutral=_GRID | {"device", "max-batch"},
        ),
        "score": StepKind(
            tool="score.py",
            inputs={"checkpoint": "checkpoint", "input": "files", "template": "template"},
            output="output",
            output_type="files",
            suffix=".jsonl",
            is_parallel=True,
            neutral=_GRID | {"device", "batch-tokens"},
        ),
        "rejection": StepKind(
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
            output_type="checkpoint",
            config="rejection",
            is_parallel=True,
            is_atomic=False,
            resumes=True,
            neutral=frozenset(
                {
                    "device",
                    "inference.tensor_parallel_size",
                    "inference.pipeline_parallel_size",
                    "inference.max_batch",
                    "inference.batch_tokens",
                    "inference.timeout_seconds",
                    "training.settings.parallel",
                    "training.settings.logging",
                    "training.settings.data.verify",
                    "training.settings.model.loss_chunk_tokens",
                    "training.settings.optim.offload",
                }
            ),
        ),
        "evaluate": StepKind(
            tool="evaluate.py",
            output="output_dir",
            output_type="files",
            config="plain",
            is_parallel=True,
            is_atomic=False,
            resumes=True,
        ),
    }
)
