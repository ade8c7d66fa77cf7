"""The fine-tuning that ends a round of rejection sampling: its data and its configuration."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from megatron_chimed import files
from megatron_chimed.config.parsing import config_of
from megatron_chimed.config.run_config import RunConfig, settings_called
from megatron_chimed.config.training import steps_of_epochs
from megatron_chimed.data.datasets.blend import leaves
from megatron_chimed.data.datasets.config import BlendSource, Datasets
from megatron_chimed.data.datasets.prefix import check_stage, check_tokenizer, open_prefix
from megatron_chimed.data.preprocessing.plan import PreprocessConfig
from megatron_chimed.data.preprocessing.preprocess import preprocess
from megatron_chimed.data.templates import (
    TEMPLATES,
    Dropped,
    Template,
    TemplateUse,
    encode_conversations,
    require_one_template,
    template_uses,
)
from megatron_chimed.data.templates.encoding import EMPTY_ANSWER
from megatron_chimed.generation.prompts import Prompt
from megatron_chimed.rejection.candidate import Candidate
from megatron_chimed.rejection.config import RejectionConfig, RoundTrainingConfig
from megatron_chimed.rejection.judging import conversation_of
from megatron_chimed.rejection.materials import Materials
from megatron_chimed.rejection.selection import (
    SELECTED,
    SelectionConfig,
    select,
)
from megatron_chimed.tokenizer import Tokenizer
from megatron_chimed.training.loop import Outcome
from megatron_chimed.training.preemption import stopped_on_request
from megatron_chimed.yaml_files import load_yaml, merged

TEMPLATE_NAME = "template.yaml"
SELECTED_NAME = "selected.jsonl"
ENDLESS = 10**9


def training_setting(key: str) -> str:
    """What rejection sampling calls a setting of its training."""
    return f"training.settings.{key}"


@settings_called(training_setting)
def round_run_config(
    config: RejectionConfig, materials: Materials, *, load: str, train: str, output: str
) -> RunConfig:
    """The configuration of a round's training, but for its number of steps.

    Args:
        config: Of the job.
        materials: Of the job.
        load: The checkpoint that it starts from.
        train: Prefix of the selected answers.
        output: The run's folder.

    Raises:
        ConfigError: The files or settings under `training` are wrong.
    """
    training = config.training
    given: dict[str, Any] = {
        "model": dataclasses.asdict(materials.model),
        "data": {"seq_length": materials.model.max_position_embeddings},
    }
    for part in (*map(load_yaml, map(Path, training.config)), training.settings):
        given = merged(given, part)
    sources = (BlendSource(prefix=train), *training.mix)
    forced = {
        "stage": "sft",
        "output_dir": output,
        "tokenizer": str(materials.policy / "tokenizer"),
        "data": {"train": [*map(dataclasses.asdict, sources)], "split": None},
        "checkpoint": {"load": load},
        "training": {"train_steps": 1, "epochs": None},
    }
    named = ", ".join((*training.config, "training.settings"))
    return config_of(merged(given, forced), RunConfig, named=named)


def end_if_asked(outcome: Outcome) -> None:
    """Ends the rounds where their training was asked to stop in its last step, and ended.

    Raises:
        InterruptError: By Ctrl-C.
        ParallelError: By SIGTERM.
    """
    if outcome.stop_signal is not None:
        raise stopped_on_request(outcome.stop_signal, outcome.steps, outcome.checkpoint)


def check_data(config: RunConfig, materials: Materials) -> None:
    """Opens all data of a round's training but the selected answers, which are not there yet.

    Args:
        config: From `round_run_config`.
        materials: Of the job.

    Raises:
        ConfigError: Data are missing, or made for another stage or with another tokenizer or
            template.
        DataError: They are damaged.
    """
    (_, *train), data = config.data.train, config.data
    valid, test = (
        (BlendSource(prefix=part),) if isinstance(part, str) else part or ()
        for part in (data.valid, data.test)
    )
    template = materials.template
    uses = [
        TemplateUse(
            where=f"the policy {materials.policy}", name=template.name, identity=template.identity
        )
    ]
    for where, sources in (("training.mix", train), ("data.valid", valid), ("data.test", test)):
        for source in sources:
            prefix = open_prefix(source.prefix)
            check_stage(prefix, "sft")
            check_tokenizer(prefix.indexed, config.model.vocab_size, materials.tokenizer.identity)
            uses += template_uses([(f"{where} {source.prefix}", prefix.rendering)])
    if not data.allow_other_template:
        require_one_template(uses, flag="--training.settings.data.allow_other_template")


def of_any_length(config: RunConfig, output: str) -> RunConfig:
    """The configuration for a plan: how many steps it has is known when answers are selected."""
    training = dataclasses.replace(config.training, train_steps=ENDLESS)
    return dataclasses.replace(config, training=training, output_dir=output)


def with_steps(config: RunConfig, datasets: Datasets, training: RoundTrainingConfig) -> RunConfig:
    """The configuration with the steps that read the selected answers `epochs` times.

    Args:
        config: From `round_run_config`.
        datasets: Its data, the selected answers first.
        training: Says how often.
    """
    samples = next(leaves(datasets.train)).samples_per_epoch
    share = 1.0 / (1.0 + sum(source.weight for source in training.mix))
    batch = config.training.global_batch_size
    steps = steps_of_epochs(training.epochs, samples / share, batch)
    return dataclasses.replace(
        config, training=dataclasses.replace(config.training, train_steps=steps)
    )


def select_learnable(
    candidates: Sequence[Candidate],
    config: SelectionConfig,
    prompts: Sequence[Prompt],
    *,
    tokenizer: Tokenizer,
    template: Template,
    seq_length: int,
) -> list[Candidate]:
    """Selects among the answers that fit a sample of training whole, behind their prompts.

    Of a conversation that does not fit, training would learn an earlier answer, or nothing.

    Returns:
        The candidates in their order with their decisions.
    """
    conversations = [conversation_of(prompts[item.prompt], item.text) for item in candidates]
    encoded = encode_conversations(tokenizer, template, conversations, seq_length=seq_length)
    untrainable = {
        place
        for place, item in enumerate(encoded)
        if (item.reason != EMPTY_ANSWER if isinstance(item, Dropped) else item.dropped_turns > 0)
    }
    return select(candidates, config, untrainable=untrainable)


def write_selected(path: Path, prompts: Sequence[Prompt], candidates: Iterable[Candidate]) -> None:
    """Writes the selected answers as conversations (format `sharegpt`), all or nothing."""
    with files.atomic_file(path) as temporary, open(temporary, "w", encoding="utf-8") as stream:
        for candidate in candidates:
            if candidate.decision == SELECTED:
                row = _row(prompts[candidate.prompt], candidate)
                stream.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def preprocess_selected(
    paths: Sequence[Path], prefix: Path, *, tokenizer: Path, template: Template, seq_length: int
) -> None:
    """Makes SFT data of selected answers; of each conversation the last answer alone is learned.

    Raises:
        ChimedError: As of `preprocess`.
    """
    config = PreprocessConfig(
        inputs=tuple(map(str, paths)),
        tokenizer=str(tokenizer),
        output_prefix=str(prefix),
        format="sharegpt",
        stage="sft",
        template=template_name(template, prefix.parent),
        targets="last",
        seq_length=seq_length,
        overwrite=True,
    )
    preprocess(config, say=print)


def template_name(template: Template, folder: Path) -> str:
    """A name that `load_template` knows: a built-in one, or that of a file written to `folder`."""
    if template.name in TEMPLATES and TEMPLATES[template.name].identity == template.identity:
        return template.name
    path = folder / TEMPLATE_NAME
    fields = dataclasses.asdict(template) | {"tags": list(template.tags)}
    files.write_text(path, yaml.safe_dump(fields, allow_unicode=True, sort_keys=False))
    return str(path)


def _row(prompt: Prompt, candidate: Candidate) -> dict[str, Any]:
    conversation = conversation_of(prompt, candidate.text)
    messages = [
        {"from": speaker, "value": text}
        for turn in conversation.turns
        for speaker, text in (("human", turn.question), ("gpt", turn.answer))
    ]
    row: dict[str, Any] = {"id": prompt.id, "source": candidate.source, "reward": candidate.score}
    if conversation.system:
        row["system"] = conversation.system
    return row | {"conversations": messages}
