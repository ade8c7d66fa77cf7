"""Opens the models of an evaluation, each in turn."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_chimed.checkpoint.manifest import manifest_sha256, read_manifest
from megatron_chimed.checkpoint.reader import newest_checkpoint
from megatron_chimed.data.templates import load_template
from megatron_chimed.errors import ConfigError
from megatron_chimed.evaluation.config import EvaluationConfig, ModelEntry
from megatron_chimed.evaluation.models.endpoint import EndpointClient
from megatron_chimed.evaluation.models.endpoint_model import EndpointModel, endpoint_settings
from megatron_chimed.evaluation.models.shard_model import ShardModel
from megatron_chimed.evaluation.models.transformers_model import (
    TransformersModel,
    check_folder,
    folder_identity,
)
from megatron_chimed.evaluation.requests import EvaluatedModel
from megatron_chimed.generation import choose_template
from megatron_chimed.generation.workers import Workers


def source_identity(entry: ModelEntry, config: EvaluationConfig) -> dict[str, Any]:
    """All that a model's results depend on, known without loading it.

    Raises:
        CheckpointError: There is no checkpoint, or it or a folder is damaged.
        ConfigError: The template is unknown, or a folder holds no language model.
        UnsafeInputError: A folder's weights are pickles.
    """
    template = load_template(entry.template).identity if entry.template else None
    settings = {
        "template": template,
        "add_bos": entry.add_bos,
        "precision": config.inference.precision,
    }
    if entry.checkpoint:
        manifest = read_manifest(newest_checkpoint(entry.checkpoint))
        return {"model": manifest_sha256(manifest), **settings}
    if entry.folder:
        return {"model": folder_identity(check_folder(entry.folder)), **settings}
    keys = ("endpoint", "model", "completes_text")
    return {key: getattr(entry, key) for key in keys}


def check_models(config: EvaluationConfig, world_size: int) -> None:
    """Checks what can be checked before anything runs: ranks, and whether endpoints answer.

    Raises:
        ConfigError: There are several ranks for models of one process, or an endpoint is down.
    """
    judges = [judge for judge in config.judges if not judge.people]
    for entry in (*config.models, *judges):
        if entry.checkpoint:
            continue
        if world_size > 1:
            kind = "a folder" if entry.folder else "an endpoint"
            raise ConfigError(
                f"{entry.named} is {kind}, which one process evaluates, but there are "
                f"{world_size} ranks. Evaluate it by itself, without a launcher, or import the "
                "folder with tools/convert_checkpoint.py import-hf."
            )
        if entry.endpoint:
            EndpointClient(endpoint_settings(entry)).require_reachable()


@contextlib.contextmanager
def open_model(
    entry: ModelEntry, config: EvaluationConfig, workers: Workers
) -> Iterator[EvaluatedModel]:
    """One model, ready to answer; every rank calls it.

    Raises:
        ChimedError: It cannot be opened.
    """
    if entry.folder:
        yield TransformersModel(check_folder(entry.folder), entry, config)
        return
    if entry.endpoint:
        yield EndpointModel(entry)
        return
    assert entry.checkpoint is not None, "an entry has exactly one source"
    checkpoint = newest_checkpoint(entry.checkpoint)
    with workers.session(Path(checkpoint)) as session:
        given = load_template(entry.template) if entry.template else None
        choice = choose_template(session.template, given=given, raw=False)
        yield ShardModel(
            session,
            choice.template,
            weights=manifest_sha256(read_manifest(checkpoint)),
            add_bos=entry.add_bos,
            max_batch=config.inference.max_batch,
            batch_tokens=config.inference.batch_tokens,
        )
