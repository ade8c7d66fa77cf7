"""The fine-tuning that ends a round of rejection sampling: its data and its configuration."""

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from megatron_chimed import files
from megatron_chimed.config import RunConfig, config_of, make_parser
from megatron_chimed.data.config import Datasets
from megatron_chimed.data.plan import PreprocessConfig
from megatron_chimed.data.preprocess import preprocess
from megatron_chimed.data.templates import TEMPLATES, Dropped, Template, encode_conversations
from megatron_chimed.data.templates.encoding import EMPTY_ANSWER
from megatron_chimed.pipeline.declaration import load_yaml, merged
from megatron_chimed.tokenizer import Tokenizer
from megatron_chimed.training.rejection.candidate import Candidate
from megatron_chimed.training.rejection.config import RejectionConfig, RoundTrainingConfig
from megatron_chimed.training.rejection.judging import conversation_of
from megatron_chimed.training.rejection.materials import Materials
from megatron_chimed.training.rejection.prompts import Prompt
from megatron_chimed.training.rejection.selection import (
    SELECTED,
    TOO_LONG,
    SelectionConfig,
    select,
)

TEMPLATE_NAME = "template.yaml"
SELECTED_NAME = "selected.jsonl"


def round_run_config(
    config: RejectionConfig, materials: Materials, *, load: str, train: Sequence[str], output: str
) -> RunConfig:
    """The configuration of a round's training, but for its number of steps.

    Args:
        config: Of the job.
        materials: Of the job.
        load: The checkpoint that it starts from.
        train: Prefixes of the selected answers.
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
    weighted = [{"prefix": prefix, "weight": 1.0 / len(train)} for prefix in train]
    weighted += [dataclasses.asdict(source) for source in training.mix]
    forced = {
        "stage": "sft",
        "output_dir": output,
        "tokenizer": str(materials.policy / "tokenizer"),
        "data": {"train": weighted, "split": None},
        "checkpoint": {"load": load},
        "training": {"train_steps": 1},
    }
    named = ", ".join((*training.config, "training.settings"))
    return config_of(merged(given, forced), make_parser("tools/train.py", ""), named, RunConfig)


def with_steps(
    config: RunConfig, datasets: Datasets, training: RoundTrainingConfig, num_selected: int
) -> RunConfig:
    """The configuration with the steps that read the selected answers `epochs` times.

    Args:
        config: From `round_run_config`.
        datasets: Its data.
        training: Says how often.
        num_selected: Prefixes that hold selected answers; those of the mix come after them.
    """
    parts = getattr(datasets.train, "datasets", [datasets.train])
    samples = sum(part.samples_per_epoch for part in parts[:num_selected])
    share = 1.0 / (1.0 + sum(source.weight for source in training.mix))
    steps = math.ceil(training.epochs * samples / share / config.training.global_batch_size)
    steps = max(1, steps)
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
        The candidates in their order with their decisions; those that do not fit are too long.
    """
    conversations = [conversation_of(prompts[item.prompt], item.text) for item in candidates]
    encoded = encode_conversations(tokenizer, template, conversations, seq_length=seq_length)
    fits = [
        item.reason == EMPTY_ANSWER if isinstance(item, Dropped) else item.dropped_turns == 0
        for item in encoded
    ]
    decided = iter(select([c for c, fit in zip(candidates, fits, strict=True) if fit], config))
    return [
        next(decided) if fit else dataclasses.replace(candidate, decision=TOO_LONG)
        for candidate, fit in zip(candidates, fits, strict=True)
    ]


def write_selected(path: Path, prompts: Sequence[Prompt], candidates: Iterable[Candidate]) -> None:
    """Writes the selected answers as conversations (format `sharegpt`), all or nothing."""
    with files.atomic_file(path) as temporary, open(temporary, "w", encoding="utf-8") as stream:
        for candidate in candidates:
            if candidate.decision == SELECTED:
                row = _row(prompts[candidate.prompt], candidate)
                stream.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def preprocess_selected(
    path: Path, prefix: Path, *, tokenizer: Path, template: Template, seq_length: int
) -> None:
    """Makes SFT data of selected answers; of each conversation the last answer alone is learned.

    Raises:
        ChimedError: As of `preprocess`.
    """
    config = PreprocessConfig(
        inputs=(str(path),),
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
