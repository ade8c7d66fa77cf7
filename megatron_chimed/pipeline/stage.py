"""Runs one stage of training from its configuration, on this rank; or only plans it."""

import contextlib
import os
import socket
import uuid
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from megatron_chimed import files
from megatron_chimed.checkpoint.commit import iteration_name, sweep
from megatron_chimed.checkpoint.control import Control
from megatron_chimed.checkpoint.hf_tokenizer import tokenizer_files, with_padding
from megatron_chimed.config import RunConfig
from megatron_chimed.data.config import Datasets, build_datasets
from megatron_chimed.data.templates import (
    STORED_KEY,
    Template,
    require_one_template,
    store_template,
    template_of,
    template_uses,
)
from megatron_chimed.engine import ParallelLayout, Ranks, Stage, check_batch, join, leave
from megatron_chimed.errors import ConfigError, OutputError
from megatron_chimed.model import TokenLoss
from megatron_chimed.planning.memory import plan_memory
from megatron_chimed.planning.report import print_memory
from megatron_chimed.tokenizer import Tokenizer, load_tokenizer
from megatron_chimed.training import state
from megatron_chimed.training.dpo_stage import DPOStage
from megatron_chimed.training.job import JobConfig, build_job
from megatron_chimed.training.loop import Outcome, train
from megatron_chimed.training.reference import add_reference
from megatron_chimed.training.reward_stage import RewardStage
from megatron_chimed.training.token_stage import TokenLossStage

CONFIG_NAME = "config.yaml"
LOCK_NAME = ".lock"


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a configuration names, opened and checked."""

    layout: ParallelLayout
    tokenizer: Tokenizer
    datasets: Datasets
    template: Template | None
    """Of the conversations, of the first prefix of `data.train` where several are allowed; None for
    plain text."""


def open_inputs(config: RunConfig, world_size: int) -> Inputs:
    """Checks layout, tokenizer and data; nothing is built, no process group is made.

    Raises:
        ConfigError: Settings that contradict each other, the data or the tokenizer.
        DataError: A dataset is damaged.
    """
    layout = config.plan_layout(world_size)
    tokenizer = load_tokenizer(config.tokenizer)
    if tokenizer.vocab_size > config.model.vocab_size:
        raise ConfigError(
            f"the tokenizer {config.tokenizer} has {tokenizer.vocab_size} ids, the model only "
            f"{config.model.vocab_size}. Set --model.vocab_size {tokenizer.vocab_size} or more, or "
            "give the model's own tokenizer."
        )
    datasets = build_datasets(
        config.data,
        stage="preference" if config.stage in ("reward", "dpo") else config.stage,
        vocab_size=config.model.vocab_size,
        tokenizer_identity=tokenizer.identity,
        eod_id=tokenizer.eos_id,
        seed=config.training.seed,
    )
    template = None
    if config.stage != "pretrain":
        uses = template_uses(datasets.renderings)
        if not config.data.allow_other_template:
            require_one_template(uses)
        template = template_of(uses[0])
    return Inputs(layout=layout, tokenizer=tokenizer, datasets=datasets, template=template)


def run_training(config: RunConfig, *, rank: int, world_size: int, local_rank: int) -> int:
    """Trains one stage as one rank of the job.

    Returns:
        Exit code 0; every failure raises.
    """
    inputs = open_inputs(config, world_size)
    ranks = join(inputs.layout, rank=rank, local_rank=local_rank)
    try:
        outcome = train_stage(config, inputs, ranks)
    finally:
        leave()
    if rank == 0:
        print(_describe(outcome, config))
    return 0


def train_stage(config: RunConfig, inputs: Inputs, ranks: Ranks) -> Outcome:
    """Builds the job and trains it; the caller joins and leaves the ranks.

    Raises:
        OutputError: The run's folder cannot be written, or another job is at work in it.
    """
    control = Control(ranks.control_group)
    run_id = control.on_first(lambda: uuid.uuid4().hex[:8])
    with contextlib.ExitStack() as held:
        control.on_first(lambda: _claim_output(config, run_id, held))
        token_loss = TokenLoss(config.model, group=ranks.tensor_group, kernels=config.kernels.ops())
        stage = _make_stage(config, inputs.datasets, token_loss)
        job = build_job(_job_config(config, inputs), stage, inputs.datasets, ranks)
        starts_from = state.restore(job)
        # Only now: a run that may not go on must not change the folder it was refused for.
        control.on_first(lambda: _save_config(config))
        if config.stage == "dpo":
            job = add_reference(job, token_loss)
        return train(job, run_id=run_id, starts_from=starts_from)


def _make_stage(config: RunConfig, datasets: Datasets, token_loss: TokenLoss) -> Stage:
    if config.stage == "reward":
        return RewardStage()
    if config.stage == "dpo":
        return DPOStage(token_loss, config.dpo)
    return TokenLossStage(token_loss, datasets.sources)


def _claim_output(config: RunConfig, run_id: str, held: contextlib.ExitStack) -> None:
    """Locks the run's folder for this job and removes what killed saves left in it."""
    folder = Path(config.output_dir)
    owner = f"run {run_id} on {socket.gethostname()}, process {os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held.callback(_remove_if_empty, folder)
        held.enter_context(files.locked(folder / LOCK_NAME, owner))
    except BlockingIOError as error:
        raise OutputError(
            f"{folder} is {error.strerror}: two jobs would overwrite each other. Wait for it, stop "
            "it, or give another --output_dir."
        ) from error
    except OSError as error:
        raise OutputError(
            f"the run's folder {folder} cannot be written: {error}. Set --output_dir to a folder "
            "that can."
        ) from error
    sweep(folder / "checkpoints")


def _remove_if_empty(folder: Path) -> None:
    if not any(folder.iterdir()):
        folder.rmdir()


def _save_config(config: RunConfig) -> None:
    with files.atomic_file(Path(config.output_dir, CONFIG_NAME)) as temporary:
        config.save(temporary)


def _job_config(config: RunConfig, inputs: Inputs) -> JobConfig:
    tokenizer, template = inputs.tokenizer, inputs.template
    stored = {} if template is None else {STORED_KEY: store_template(template)}
    if config.stage == "reward":
        tokenizer = with_padding(tokenizer)
    return JobConfig(
        model=config.model,
        optim=config.optim,
        training=config.training,
        checkpoint=config.checkpoint,
        logging=config.logging,
        kernels=config.kernels,
        lora=config.lora,
        seq_length=config.data.seq_length,
        prefetch=config.data.prefetch,
        output_dir=Path(config.output_dir),
        resolved=config.plain() | stored,
        tokenizer_identity=tokenizer.identity,
        tokenizer_files=tokenizer_files(tokenizer),
        template=template,
        allow_other_template=config.data.allow_other_template,
    )


def _describe(outcome: Outcome, config: RunConfig) -> str:
    lines = [f"done: {outcome.steps} steps"]
    if outcome.stopped_early:
        lines[0] += ", stopped early: the validation loss no longer fell"
    if outcome.valid_loss is not None:
        lines.append(f"best validation loss {outcome.valid_loss:.4f} at step {outcome.best_step}")
        best = Path(config.output_dir, "checkpoints", iteration_name(outcome.best_step))
        if best.is_dir() and outcome.best_step != outcome.steps:
            lines.append(f"its checkpoint is {best}, older than the newest: name it to use it")
    lines.append(f"everything is in {config.output_dir}")
    return "\n".join(lines)


def plan_training(config: RunConfig, *, world_size: int) -> int:
    """Prints what training would take, and checks configuration, layout and data as it would.

    The plan comes first: it needs no data, which may not be there yet.

    Returns:
        Exit code 0; every fault raises.
    """
    training, layout = config.training, config.plan_layout(world_size)
    num_microbatches = check_batch(
        layout,
        micro_batch_size=training.micro_batch_size,
        global_batch_size=training.global_batch_size,
    )
    tokens = training.global_batch_size * config.data.seq_length
    console = Console()
    console.print(
        f"{config.model.num_parameters:,} parameters, {training.precision}, "
        f"recompute {config.model.recompute}, vocabulary {config.model.vocab_size} "
        f"(in memory {config.model.padded_vocab_size(layout.tensor_parallel_size)})\n"
        f"{training.train_steps} steps of {tokens:,} tokens = "
        f"{training.train_steps * tokens:,} tokens; {num_microbatches} micro-batches of "
        f"{training.micro_batch_size} on each data-parallel rank"
    )
    print_memory_plan(config, layout, console)
    datasets = open_inputs(config, world_size).datasets
    console.print(
        f"one epoch of the training data is {datasets.train.samples_per_epoch:,} samples of "
        f"{config.data.seq_length} tokens; the run reads "
        f"{training.train_steps * training.global_batch_size:,}"
    )
    console.print("configuration, data and layout are valid; nothing was trained")
    return 0


def print_memory_plan(config: RunConfig, layout: ParallelLayout, console: Console) -> None:
    """Prints what training takes on the ranks of each pipeline stage."""
    training = config.training
    num_microbatches = check_batch(
        layout,
        micro_batch_size=training.micro_batch_size,
        global_batch_size=training.global_batch_size,
    )
    plans = plan_memory(
        config.model,
        layout,
        micro_batch_size=training.micro_batch_size,
        num_microbatches=num_microbatches,
        seq_length=config.data.seq_length,
        precision=training.precision,
        lora=config.lora,
    )
    print_memory(plans, layout, console)
