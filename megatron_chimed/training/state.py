"""Saves and restores a job: a checkpoint holds all of its state and loads at any layout."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_chimed.checkpoint.adapters import merge_adapters, stored_lora_config
from megatron_chimed.checkpoint.commit import committed, set_aside, write_best_hint
from megatron_chimed.checkpoint.load import MASTER_PREFIX, load_checkpoint
from megatron_chimed.checkpoint.reader import CheckpointReader, open_checkpoint
from megatron_chimed.checkpoint.save import Snapshot, save_checkpoint
from megatron_chimed.config.model import architecture_differences
from megatron_chimed.data.templates import (
    STORED_KEY,
    Template,
    TemplateUse,
    require_one_template,
    stored_template,
)
from megatron_chimed.engine import rng_state, set_rng_state, synchronize_parameters
from megatron_chimed.errors import ConfigError, short_hashes
from megatron_chimed.model import (
    SCORE_KEY,
    LoraConfig,
    ModelConfig,
    initialize_weights,
    is_adapter,
    weight_shards,
)
from megatron_chimed.training.job import Job, JobConfig, TrainingProgress


def checkpoints_folder(config: JobConfig) -> Path:
    """Where a run keeps its checkpoints."""
    return config.output_dir / "checkpoints"


def save(job: Job, run_id: str) -> Path:
    """Commits a checkpoint of the job's current state; every rank calls it."""
    synchronize_parameters(job.wrapped)
    config, progress = job.config.checkpoint, job.progress
    state = {
        "progress": dataclasses.asdict(progress),
        "optimizer": job.optimizer.state(),
        "data_order": job.datasets.order,
        "data_hashes": dict(job.datasets.hashes),
        "tokenizer_identity": job.config.tokenizer_identity,
    }
    saved = save_checkpoint(
        checkpoints_folder(job.config),
        Snapshot(
            iteration=progress.step,
            shards=job.shards(),
            state=state,
            rank_state=rng_state(),
            config=job.config.resolved,
            layout=_grid(job),
            tokenizer=job.config.tokenizer_files,
        ),
        agreement=job.agreement,
        run_id=run_id,
        keep=config.keep,
        protect=(progress.best_step,) if config.keep_best and progress.best_step else (),
    )
    point_at_best(job)
    return saved


def point_at_best(job: Job) -> None:
    """Writes the best validation's checkpoint into `checkpoints/best`, if it is kept."""
    step = job.progress.best_step if job.config.checkpoint.keep_best else None
    job.agreement.on_rank_0(lambda: write_best_hint(checkpoints_folder(job.config), step))


def restore(job: Job) -> str:
    """Resumes the run, or loads other weights, or draws fresh ones.

    Returns:
        One line about what the job starts from.

    Raises:
        CheckpointError: No checkpoint is valid, or it does not fit the model.
        ConfigError: The run was started with another model, data or tokenizer.
    """
    config = job.config.checkpoint
    own = checkpoints_folder(job.config)
    found = job.agreement.on_rank_0(lambda: bool(committed(own)))
    if found and not config.resume:
        raise ConfigError(
            f"{own} holds checkpoints, but --checkpoint.resume is false and nothing is ever "
            "overwritten. Give another --output-dir, or remove the folder."
        )
    if found:
        reader = open_checkpoint(own, agreement=job.agreement)
        starts_from = _resume(job, reader)
        job.agreement.on_rank_0(lambda: len(set_aside(own, reader.iteration)))
        point_at_best(job)
        return starts_from
    if config.load is not None:
        return load_weights(job, open_checkpoint(config.load, agreement=job.agreement))
    draw_weights(job)
    return f"fresh weights, seed {job.config.training.seed}"


def load_weights(job: Job, reader: CheckpointReader) -> str:
    """Loads only the weights of a checkpoint, for a training stage that follows another.

    Adapters in the checkpoint are merged into the weights; those of this job are fresh.

    Returns:
        One line about what was loaded.

    Raises:
        CheckpointError: The checkpoint lacks some of the weights.
        ConfigError: It has another architecture, tokenizer or template.
    """
    config = job.config
    check_fit(reader, config.model, config.tokenizer_identity, config.template)
    drawn = _draw_missing(job, reader)
    # Master weights are loaded too if stored: the next training stage keeps their fp32 values.
    masters = [held for held in job.shards() if held.key.startswith(MASTER_PREFIX)]
    wanted = [
        held
        for held in weight_shards(job.chunks) + masters
        if held.key.removeprefix(MASTER_PREFIX) not in drawn
    ]
    load_checkpoint(merge_adapters(reader), wanted, agreement=job.agreement)
    fresh = ", fresh adapters" if any(map(is_adapter, drawn)) else ""
    fresh += f", fresh {SCORE_KEY}" if SCORE_KEY in drawn else ""
    return f"weights from {reader.directory}{fresh}, optimizer and data from the start"


def draw_weights(job: Job) -> None:
    """Draws fresh weights, the same for every layout."""
    for chunk in job.chunks:
        initialize_weights(chunk, job.config.training.seed)
    job.optimizer.reset_master_weights()


def _draw_missing(job: Job, reader: CheckpointReader) -> set[str]:
    """Draws adapters, and the head of a reward model that starts from a language model.

    A reward model's checkpoint must have its own head: a freshly drawn one would score noise.

    Returns:
        Names of the drawn weights.
    """
    keys = {held.key for held in weight_shards(job.chunks) if is_adapter(held.key)}
    is_stored = reader.config.get("model", {}).get("head") == "score"
    if job.config.model.head == "score" and not is_stored:
        keys.add(SCORE_KEY)
    if keys:
        for chunk in job.chunks:
            initialize_weights(chunk, job.config.training.seed, keys=keys)
        job.optimizer.reset_master_weights()
    return keys


def _resume(job: Job, reader: CheckpointReader) -> str:
    if not reader.has_optimizer:
        raise ConfigError(
            f"{reader.directory} holds only weights, so there is no run to resume. Start a new run "
            f"from it: --checkpoint.load {reader.directory} with another --output-dir."
        )
    config = job.config
    check_fit(reader, config.model, config.tokenizer_identity, config.template)
    _check_data_order(job, reader)
    _check_data_hashes(job, reader)
    _check_adapters(job, reader)
    load_checkpoint(reader, job.shards(), agreement=job.agreement)
    job.optimizer.load_state(reader.state["optimizer"])
    progress = TrainingProgress(**reader.state["progress"])
    for name, value in dataclasses.asdict(progress).items():
        setattr(job.progress, name, value)
    if reader.manifest.layout == _grid(job):
        set_rng_state(reader.rank_states[job.ranks.rank])
        dropout = "random streams restored"
    else:
        dropout = "another layout: new random streams for dropout"
    changed = _changed_settings(reader.config, job.config.resolved)
    return f"resumed from {reader.directory} at step {progress.step}; {dropout}{changed}"


def _changed_settings(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Settings that differ from the checkpoint's, for the log; the new values apply."""
    names = []
    for section, values in now.items():
        if isinstance(values, Mapping) and isinstance(then.get(section), Mapping):
            names += [
                f"{section}.{name} {then[section][name]} -> {value}"
                for name, value in values.items()
                if name in then[section] and then[section][name] != value
            ]
    return f"; changed: {', '.join(names)}" if names else ""


def _grid(job: Job) -> dict[str, int | str]:
    layout = job.ranks.layout
    return {
        "tensor_parallel_size": layout.tensor_parallel_size,
        "pipeline_parallel_size": layout.pipeline_parallel_size,
        "virtual_pipeline_parallel_size": layout.virtual_pipeline_parallel_size,
        "data_parallel_size": layout.data_parallel_size,
        "sequence_parallel": layout.sequence_parallel,
        "device": job.ranks.device.type,
    }


def check_fit(
    reader: CheckpointReader,
    model: ModelConfig,
    tokenizer_identity: str,
    template: Template | None,
) -> None:
    """Refuses the weights of another architecture, tokenizer or template.

    Args:
        reader: The checkpoint.
        model: The run's architecture.
        tokenizer_identity: Identity of the run's tokenizer.
        template: Template of the run's conversations; None: any, as for plain text.

    Raises:
        ConfigError: One of them differs.
    """
    stored = reader.config.get("model", {})
    wanted = dataclasses.asdict(model)
    differences = architecture_differences(stored, wanted)
    if stored.get("head") == "score" and wanted["head"] == "lm":
        raise ConfigError(
            f"{reader.directory} holds a reward model, which has no language-model head. Load the "
            "language model that it was trained from, or set `stage: reward`."
        )
    if differences:
        raise ConfigError(
            f"{reader.directory} holds another architecture: {'; '.join(differences)}. Set the "
            "model section to the checkpoint's, or give another checkpoint."
        )
    identity = reader.state.get("tokenizer_identity")
    if identity is not None and identity != tokenizer_identity:
        raise ConfigError(
            f"{reader.directory} was trained with another tokenizer (sha256 {identity[:12]}, this "
            f"run's is {tokenizer_identity[:12]}): its ids mean other tokens. Set "
            f"--tokenizer to the one in {reader.directory / 'tokenizer'}."
        )
    _check_template(reader, template)


def _check_template(reader: CheckpointReader, wanted: Template | None) -> None:
    """Refuses weights trained with another chat template; a base model has none."""
    stored = stored_template(reader.config.get(STORED_KEY), str(reader.directory))
    if stored is None or wanted is None:
        return
    of_model, of_data = (
        TemplateUse(where=where, name=template.name, identity=template.identity)
        for where, template in (
            (f"the checkpoint {reader.directory}", stored),
            ("data.train", wanted),
        )
    )
    require_one_template([of_model, of_data])


def _check_adapters(job: Job, reader: CheckpointReader) -> None:
    then, now = _describe_adapters(stored_lora_config(reader)), _describe_adapters(job.config.lora)
    if then != now:
        raise ConfigError(
            f"the run in {job.config.output_dir} has {then}, but the config now has {now}. Set "
            "the lora section back, or start a new run from its weights: --checkpoint.load "
            f"{reader.directory} with another --output-dir."
        )


def _describe_adapters(lora: LoraConfig) -> str:
    if not lora.rank:
        return "no adapters"
    targets = ", ".join(sorted(lora.targets))
    return f"adapters of rank {lora.rank} with alpha {lora.alpha:g} on {targets}"


def _check_data_order(job: Job, reader: CheckpointReader) -> None:
    then, now = reader.state["data_order"], job.datasets.order
    differences = [
        short_hashes(f"{name} was {then.get(name)!r} and is {now[name]!r}")
        for name in now
        if then.get(name) != now[name]
    ]
    if differences:
        raise ConfigError(
            f"the run in {job.config.output_dir} cannot resume, since its order of samples would "
            f"change: {'; '.join(differences)}. Set them back, or start a new run from its "
            f"weights: --checkpoint.load {reader.directory} with another --output-dir."
        )


def _check_data_hashes(job: Job, reader: CheckpointReader) -> None:
    """Refuses files that were replaced; validation data may be others, under another path.

    `data_order` knows the files by their sidecars: this finds stock Megatron files too.
    """
    then, now = reader.state.get("data_hashes", {}), job.datasets.hashes
    paths_then, paths_now = reader.config.get("data", {}), job.config.resolved.get("data", {})
    differences = []
    for name in now:
        part = name.removeprefix("data.").partition("[")[0]
        is_same_file = part == "train" or paths_then.get(part) == paths_now.get(part)
        if is_same_file and then.get(name, now[name]) != now[name]:
            was, found = short_hashes(then[name]), short_hashes(now[name])
            differences.append(f"sha256 of {name} was {was} and is {found}")
    if differences:
        raise ConfigError(
            f"the run in {job.config.output_dir} cannot resume, since its data files were replaced "
            f"after it started: {'; '.join(differences)}. Restore them, or start a new run from "
            f"its weights: --checkpoint.load {reader.directory} with another --output-dir."
        )
