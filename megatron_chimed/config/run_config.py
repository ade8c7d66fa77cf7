"""The configuration of a training run, composed of its sections."""

import contextlib
import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from megatron_chimed.config.checkpoint import CheckpointConfig
from megatron_chimed.config.dpo import DPOConfig
from megatron_chimed.config.kernels import KernelConfig
from megatron_chimed.config.lora import LoraConfig
from megatron_chimed.config.model import ModelConfig
from megatron_chimed.config.optim import OptimConfig
from megatron_chimed.config.parallel import (
    ParallelConfig,
    ParallelLayout,
    check_batch,
    plan_layout,
)
from megatron_chimed.config.training import TrainConfig
from megatron_chimed.data.datasets.config import DataConfig
from megatron_chimed.errors import ConfigError, reworded
from megatron_chimed.field_types import check_types, field_types
from megatron_chimed.observe.logger import LogConfig
from megatron_chimed.yaml_files import plain


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run."""

    stage: Literal["pretrain", "sft", "reward", "dpo"] = "pretrain"
    """The training stage. `pretrain`: next-token loss over joined documents; `sft`: over the
    answers of packed conversations; `reward`: a score that ranks answers as people did; `dpo`: the
    policy directly from such rankings."""
    device: Literal["auto", "cuda", "rocm", "cpu"] = "auto"
    """Where it runs. `cuda`: each rank on a GPU of its own, or an error that says why not; `auto`:
    there if torch can use GPUs, else on the CPU; `cpu`: on the CPU, GPUs or not; `rocm`: on AMD
    GPUs, on which nothing was ever tried."""
    output_dir: str
    """The run's folder: checkpoints, metrics.jsonl, TensorBoard files, loss_curve.png."""
    tokenizer: str
    """A `tokenizer.model` or `tokenizer.json`, or a Hugging Face folder that holds one."""
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    """The architecture; `--preset` fills it."""
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)
    """With a rank above 0, adapters are trained beside the frozen weights of checkpoint.load."""
    parallel: ParallelConfig = dataclasses.field(default_factory=ParallelConfig)
    """Its distribution over ranks."""
    data: DataConfig
    """Training data."""
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    """Optimizer and learning rate."""
    training: TrainConfig
    """Steps, batch, precision, validation."""
    dpo: DPOConfig = dataclasses.field(default_factory=DPOConfig)
    """The objective of `stage: dpo`; its reference is the model of checkpoint.load."""
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    """Saving and resuming."""
    logging: LogConfig = dataclasses.field(default_factory=LogConfig)
    """Logging."""
    kernels: KernelConfig = dataclasses.field(default_factory=KernelConfig)
    """Fused ops or plain torch."""

    def __post_init__(self) -> None:
        """Checks sections against each other, and gives a reward model its head.

        Raises:
            ConfigError: `model.head` is a score in another stage, DPO has no reference, or adapters
                have no model.
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
        """The stage that its data must have been preprocessed for."""
        return "preference" if self.stage in ("reward", "dpo") else self.stage

    def plan_layout(self, world_size: int) -> ParallelLayout:
        """Checks the sections against each other and the number of ranks; returns the layout.

        Raises:
            ConfigError: They do not fit.
        """
        model, data = self.model, self.data
        if data.seq_length > model.max_position_embeddings:
            raise ConfigError(
                f"data.seq_length ({data.seq_length}) is longer than model.max_position_embeddings "
                f"({model.max_position_embeddings}): the model knows no later positions. "
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
        """Writes the configuration as a YAML file for `--config`."""
        text = yaml.safe_dump(self.plain(), allow_unicode=True, sort_keys=False)
        Path(path).write_text(text, encoding="utf-8")


def setting_names() -> frozenset[str]:
    """Every setting of a training run, such as `optim.lr`."""
    sections = field_types(RunConfig).items()
    return frozenset(
        f"{section}.{name}"
        for section, kind in sections
        if dataclasses.is_dataclass(kind)
        for name in field_types(kind)
    )


def settings_called(
    name: Callable[[str], str | None],
) -> contextlib.AbstractContextManager[None]:
    """`errors.reworded` for all settings of a training run.

    Code that several commands share names settings as tools/train.py does: `--optim.lr`.

    Args:
        name: Maps `optim.lr` to its name in the current command; None: the command lacks it.
    """
    return reworded({key: name(key) for key in setting_names()})
