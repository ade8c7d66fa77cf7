"""The configuration of the fine-tuning that ends a round, checked before anything is drawn."""

import dataclasses
from pathlib import Path
from typing import Any

from megatron_chimed.config.parsing import config_of
from megatron_chimed.config.run_config import RunConfig, settings_called
from megatron_chimed.config.training import steps_of_epochs
from megatron_chimed.data.datasets.blend import leaves
from megatron_chimed.data.datasets.config import BlendSource, Datasets
from megatron_chimed.data.datasets.prefix import check_stage, check_tokenizer, open_prefix
from megatron_chimed.data.templates import TemplateUse, require_one_template, template_uses
from megatron_chimed.generation import plan_session
from megatron_chimed.generation.session import vocab_size_of
from megatron_chimed.generation.workers import inference_setting
from megatron_chimed.rejection.config import RejectionConfig, RoundTrainingConfig
from megatron_chimed.rejection.inputs import RejectionInputs
from megatron_chimed.yaml_files import load_yaml, merged

ENDLESS = 10**9


def training_setting(key: str) -> str:
    """The name of a training setting in the configuration of rejection sampling."""
    return f"training.settings.{key}"


def round_run_config(
    config: RejectionConfig, inputs: RejectionInputs, *, load: str, train: str, output: str
) -> RunConfig:
    """The configuration of a round's training, except for its number of steps.

    Args:
        config: Of the job.
        inputs: Of the job.
        load: The checkpoint that training starts from.
        train: Data prefix of the selected answers.
        output: The run folder.

    Raises:
        ConfigError: The files or settings under `training` are wrong.
    """
    training = config.training
    sources = (BlendSource(prefix=train), *training.mix)
    fixed = {
        "stage": "sft",
        "device": config.device,
        "output_dir": output,
        "tokenizer": str(inputs.policy / "tokenizer"),
        "data": {"train": [*map(dataclasses.asdict, sources)], "split": None},
        "checkpoint": {"load": load},
        "training": {"train_steps": 1, "epochs": None},
    }
    names = ", ".join((*training.config, "training.settings"))
    with settings_called(training_setting):
        given: dict[str, Any] = {
            "model": dataclasses.asdict(inputs.model),
            "data": {"seq_length": inputs.model.max_position_embeddings},
        }
        for layer in (*map(load_yaml, map(Path, training.config)), training.settings):
            given = merged(given, layer)
        return config_of(merged(given, fixed), RunConfig, named=names)


def check_layouts(config: RejectionConfig, inputs: RejectionInputs, world_size: int) -> RunConfig:
    """Checks before anything is drawn that the ranks can draw, score and train.

    Returns:
        The configuration of a round's training, without its data.

    Raises:
        ConfigError: A layout does not fit, or data to train or validate on are missing or do not
            match the policy.
        DataError: Data to train or validate on are damaged.
    """
    with settings_called(inference_setting):
        plan_session(config.inference.parallel(), inputs.model, world_size)
    training = round_run_config(
        config, inputs, load=str(inputs.policy), train="selected", output="round"
    )
    with settings_called(training_setting):
        training.plan_layout(world_size)
        _check_data(training, inputs)
    return training


def with_unknown_steps(config: RunConfig, output: str) -> RunConfig:
    """The configuration for a memory plan: the steps are known once answers are selected."""
    training = dataclasses.replace(config.training, train_steps=ENDLESS)
    return dataclasses.replace(config, training=training, output_dir=output)


def with_steps(config: RunConfig, datasets: Datasets, training: RoundTrainingConfig) -> RunConfig:
    """The configuration with the steps that read the selected answers `training.epochs` times.

    Args:
        config: From `round_run_config`.
        datasets: Its data, the selected answers first.
        training: Of the job.
    """
    samples = next(leaves(datasets.train)).samples_per_epoch
    share = 1.0 / (1.0 + sum(source.weight for source in training.mix))
    batch = config.training.global_batch_size
    steps = steps_of_epochs(training.epochs, samples / share, batch)
    return dataclasses.replace(
        config, training=dataclasses.replace(config.training, train_steps=steps)
    )


def _check_data(config: RunConfig, inputs: RejectionInputs) -> None:
    """Opens all data of a round's training except the selected answers, which do not exist yet.

    Raises:
        ConfigError: Data are missing, or made for another stage or with another tokenizer or
            template.
        DataError: They are damaged.
    """
    (_, *train), data, template = _sources(config.data.train), config.data, inputs.template
    vocab_size = vocab_size_of(config.model)
    uses = [
        TemplateUse(
            where=f"the policy {inputs.policy}", name=template.name, identity=template.identity
        )
    ]
    for where, sources in (
        ("training.mix", train),
        ("data.valid", _sources(data.valid)),
        ("data.test", _sources(data.test)),
    ):
        for source in sources:
            prefix = open_prefix(source.prefix)
            check_stage(prefix, "sft")
            check_tokenizer(prefix.indexed, vocab_size, inputs.tokenizer.identity)
            uses += template_uses([(f"{where} {source.prefix}", prefix.rendering)])
    if not data.allow_other_template:
        require_one_template(uses, flag="--training.settings.data.allow_other_template")


def _sources(value: str | tuple[BlendSource, ...] | None) -> tuple[BlendSource, ...]:
    return (BlendSource(prefix=value),) if isinstance(value, str) else value or ()
