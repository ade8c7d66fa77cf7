"""The inputs of a training run: tokenizer, data, template and prompts, opened and checked."""

from dataclasses import dataclass
from pathlib import Path

from megatron_chimed.config.run_config import RunConfig
from megatron_chimed.conversion.hf_generation import inherited_section, stop_ids
from megatron_chimed.data.datasets.config import Datasets, build_datasets
from megatron_chimed.data.templates import (
    Template,
    require_one_template,
    template_of,
    template_uses,
)
from megatron_chimed.engine import ParallelLayout
from megatron_chimed.observe.trackers import require_package
from megatron_chimed.tokenizer import Tokenizer, load_tokenizer
from megatron_chimed.training.config_resolution import with_steps, with_vocabulary
from megatron_chimed.training.samples import SamplePrompts, open_samples


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The inputs that a configuration names, opened and checked."""

    config: RunConfig
    """With the vocabulary size and the number of steps, which the inputs decide."""
    layout: ParallelLayout
    tokenizer: Tokenizer
    datasets: Datasets
    template: Template | None
    """Chat template of the data, that of the first prefix of `data.train` if several are allowed;
    None for plain text."""
    samples: SamplePrompts | None = None
    """Prompts that are answered at each validation."""

    @property
    def required_template(self) -> Template | None:
        """The template that the weights to start from must have been trained with; None: any."""
        return None if self.config.data.allow_other_template else self.template


def open_inputs(config: RunConfig, world_size: int) -> Inputs:
    """Checks layout, tokenizer and data; builds nothing and makes no process group.

    Raises:
        ConfigError: Settings contradict each other, the data or the tokenizer.
        DataError: A dataset is damaged.
    """
    layout = config.plan_layout(world_size)
    tokenizer = load_tokenizer(config.tokenizer)
    config = with_vocabulary(config, tokenizer)
    datasets = build_datasets(
        config.data,
        stage=config.data_stage,
        vocab_size=config.model.known_vocab_size,
        tokenizer_identity=tokenizer.identity,
        eod_id=tokenizer.eod_id,
        seed=config.training.seed,
    )
    template = None
    if config.stage != "pretrain":
        uses = template_uses(datasets.renderings)
        if not config.data.allow_other_template:
            require_one_template(uses)
        template = template_of(uses[0])
    for name in ("wandb", "swanlab"):
        require_package(name, getattr(config.logging, name))
    imported = inherited_section(Path(config.output_dir, "checkpoints"), config.checkpoint.load)
    samples = open_samples(
        config.logging,
        tokenizer,
        template,
        stage=config.stage,
        max_positions=config.model.max_position_embeddings,
        stop_ids=stop_ids(imported, tokenizer.stop_ids),
    )
    config, datasets = with_steps(config, datasets)
    return Inputs(
        config=config,
        layout=layout,
        tokenizer=tokenizer,
        datasets=datasets,
        template=template,
        samples=samples,
    )
