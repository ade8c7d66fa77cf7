"""Settings that the inputs decide if the configuration does not: vocabulary, number of steps."""

import dataclasses
from pathlib import Path

from megatron_chimed.checkpoint.reader import CheckpointReader, newest_readable
from megatron_chimed.config.run_config import RunConfig
from megatron_chimed.data.datasets.config import Datasets
from megatron_chimed.errors import ConfigError
from megatron_chimed.tokenizer import Tokenizer


def with_vocabulary(config: RunConfig, tokenizer: Tokenizer) -> RunConfig:
    """The configuration with the size of the vocabulary.

    Weights keep theirs, which may be padded; fresh ones have a row for each id of the tokenizer.

    Raises:
        ConfigError: The tokenizer has more ids.
    """
    size, source = config.model.vocab_size, "the model"
    if size is None and (reader := _starts_from(config)) is not None:
        size, source = reader.config.get("model", {}).get("vocab_size"), str(reader.directory)
    model = config.model.with_vocabulary(size or tokenizer.vocab_size)
    if tokenizer.vocab_size > model.known_vocab_size:
        grow = f"Set --model.vocab_size {tokenizer.vocab_size} or more, or give"
        raise ConfigError(
            f"the tokenizer {config.tokenizer} has {tokenizer.vocab_size} ids, {source} only "
            f"{model.vocab_size}. {grow if config.model.vocab_size else 'Give'} the model's own "
            "tokenizer."
        )
    return dataclasses.replace(config, model=model)


def with_steps(config: RunConfig, datasets: Datasets) -> tuple[RunConfig, Datasets]:
    """The configuration with a number of steps, and the data with a note where epochs gave it.

    Raises:
        ConfigError: A run would resume with another global batch size: its steps so far had the old
            one, so the same epochs would be another number of steps.
    """
    training = config.training
    if training.epochs is None:
        return config, datasets
    if (reader := _own(config)) is not None:
        then = reader.config.get("training", {}).get("global_batch_size")
        if then not in (None, training.global_batch_size):
            raise ConfigError(
                f"the run in {config.output_dir} was started with training.global_batch_size "
                f"{then}, now it is {training.global_batch_size}: --training.epochs "
                f"{training.epochs:g} counts steps of one size. Set it back, or set where the run "
                f"ends with --training.train_steps; it has done {reader.iteration} steps."
            )
    samples = datasets.train.samples_per_epoch
    resolved = training.with_steps_for(samples)
    note = (
        f"{training.epochs:g} x {samples:,} samples, {training.global_batch_size} a step: "
        f"{resolved.train_steps:,} steps"
    )
    datasets = dataclasses.replace(datasets, notes=(note, *datasets.notes))
    return dataclasses.replace(config, training=resolved), datasets


def _starts_from(config: RunConfig) -> CheckpointReader | None:
    """The checkpoint that a run's weights will come from, as far as it can be read."""
    own = _own(config)
    if own is None and config.checkpoint.load is not None:
        return newest_readable(config.checkpoint.load)
    return own


def _own(config: RunConfig) -> CheckpointReader | None:
    checkpoints = Path(config.output_dir, "checkpoints")
    return newest_readable(checkpoints) if checkpoints.is_dir() else None
