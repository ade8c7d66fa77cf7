"""Runs one training stage from its configuration on this rank, or plans it."""

import contextlib
import dataclasses
import os
import socket
import uuid
from pathlib import Path

from rich.console import Console

from megatron_chimed import files
from megatron_chimed.checkpoint.commit import BEST_NAME, iteration_name, sweep
from megatron_chimed.checkpoint.reader import CheckpointReader, newest_checkpoint
from megatron_chimed.config.missing import missing_of_run, refuse_missing
from megatron_chimed.config.run_config import RunConfig
from megatron_chimed.conversion.hf_generation import inherited_section
from megatron_chimed.conversion.hf_tokenizer import tokenizer_files, with_padding
from megatron_chimed.data.datasets.config import Datasets
from megatron_chimed.data.templates import (
    STORED_KEY,
    store_template,
)
from megatron_chimed.engine import (
    DTYPES,
    ParallelLayout,
    Ranks,
    check_batch,
    connect,
    job_stores,
    join,
    leave,
    use_device,
    uses_cuda,
)
from megatron_chimed.errors import ConfigError, OutputError
from megatron_chimed.model import TokenLoss
from megatron_chimed.observe.console import make_console
from megatron_chimed.planning.memory import plan_memory
from megatron_chimed.planning.out_of_memory import explaining_out_of_memory
from megatron_chimed.planning.report import GIB, planned_backend, print_memory
from megatron_chimed.tokenizer import load_tokenizer
from megatron_chimed.training import state
from megatron_chimed.training.checkpoint_space import CheckpointSpace, plan_checkpoint_space
from megatron_chimed.training.config_resolution import with_vocabulary
from megatron_chimed.training.data_verification import remember, verify_data
from megatron_chimed.training.job import JobConfig, build_job
from megatron_chimed.training.loop import Outcome, train
from megatron_chimed.training.objectives.base import TrainingObjective
from megatron_chimed.training.objectives.dpo import DPOObjective
from megatron_chimed.training.objectives.next_token import NextTokenObjective
from megatron_chimed.training.objectives.reward import RewardObjective
from megatron_chimed.training.reference_model import add_reference
from megatron_chimed.training.run_inputs import Inputs, open_inputs
from megatron_chimed.training.start_agreement import open_together, start_facts

CONFIG_NAME = "config.yaml"
LOCK_NAME = ".lock"
CHECKPOINTS = "checkpoints"
USUAL_VOCABULARY = 39424  # Ziya's, padded: for plans made before the tokenizer exists


def run_training(config: RunConfig, *, rank: int, world_size: int, local_rank: int) -> int:
    """Trains one stage as one rank of the job.

    Returns:
        Exit code 0; failures raise.
    """
    config.plan_layout(world_size)  # what needs no file fails without waiting for other ranks
    use_device(
        config.device,
        local_rank=local_rank,
        num_parameters=config.model.with_vocabulary(USUAL_VOCABULARY).num_parameters,
        deterministic=config.training.deterministic,
    )
    stores = job_stores(rank=rank, world_size=world_size)
    timeout = config.parallel.timeout_seconds
    agreement = connect(
        rank=rank, world_size=world_size, timeout_seconds=timeout, store=next(stores)
    )
    inputs = open_together(config, agreement)
    _check_memory(inputs)
    layout, store = inputs.layout, next(stores)
    ranks = join(layout, rank=rank, local_rank=local_rank, store=store, agreement=agreement)
    with explaining_out_of_memory(inputs.config, layout):
        try:
            outcome = train_stage(inputs.config, inputs, ranks)
        finally:
            leave()
    if rank == 0:
        print(_describe(outcome, config))
    return 0


def _check_memory(inputs: Inputs) -> None:
    """Refuses a model if the shard of one rank alone is larger than this machine's memory.

    Without a GPU it would fill the memory for minutes, until the system kills a process.

    Raises:
        ConfigError: The shard is too large.
    """
    config, layout = inputs.config, inputs.layout
    if uses_cuda():
        return
    shares = layout.tensor_parallel_size * layout.pipeline_parallel_size
    # Weights, and gradients and two moments of the trained ones.
    each = DTYPES[config.training.precision].itemsize + (0 if config.lora.rank else 12)
    needed = config.model.num_parameters // shares * each
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > available:
        raise ConfigError(
            f"a rank needs {needed / GIB:,.1f} GiB for weights, gradients and moments, and this "
            f"machine has {available / GIB:,.1f} GiB and no GPU. Plan with --dry-run, set a "
            "smaller model (--preset tiny), or spread it over more machines."
        )


def train_stage(config: RunConfig, inputs: Inputs, ranks: Ranks) -> Outcome:
    """Builds the job and trains it; the caller joins and leaves the ranks.

    Raises:
        ConfigError: The ranks have other settings or inputs.
        DataError: A file of the data is not what its sidecar states.
        OutputError: The run's folder cannot be written, or another job is using it.
    """
    agreement = ranks.agreement
    if agreement.size > 1:
        agreement.require_same(start_facts(config, inputs))
    run_id = agreement.on_rank_0(lambda: uuid.uuid4().hex[:8])
    with contextlib.ExitStack() as held:
        room = disk_room(config, validates=inputs.datasets.valid is not None)
        agreement.on_rank_0(lambda: _claim_output(config, run_id, room, held))
        folder = Path(config.output_dir)
        verified = verify_data(
            inputs.datasets,
            config.data.verify,
            agreement,
            folder=folder,
            # The launcher takes a run for hung that writes nothing into its folder.
            on_meeting=lambda: os.utime(folder / LOCK_NAME),
        )
        datasets = verified.datasets
        kernels = config.kernels.ops(ranks.device)
        token_loss = TokenLoss(config.model, group=ranks.tensor_group, kernels=kernels)
        objective = _make_objective(config, datasets, token_loss)
        job = build_job(_job_config(config, inputs), objective, datasets, ranks)
        starts_from = state.restore(job)
        # Only now: a run that is refused must not change the folder.
        agreement.on_rank_0(lambda: _save_config(config))
        agreement.on_rank_0(lambda: remember(folder, verified.known))
        if config.stage == "dpo":
            job = add_reference(job, token_loss)
        return train(job, run_id=run_id, starts_from=starts_from)


def _make_objective(
    config: RunConfig, datasets: Datasets, token_loss: TokenLoss
) -> TrainingObjective:
    if config.stage == "reward":
        return RewardObjective()
    if config.stage == "dpo":
        return DPOObjective(token_loss, config.dpo)
    return NextTokenObjective(token_loss, datasets.sources)


def disk_room(config: RunConfig, *, validates: bool = True) -> CheckpointSpace:
    """Disk space of the run's checkpoints; `validates`: whether there are validation data."""
    return plan_checkpoint_space(
        config.model, config.lora, config.training, config.checkpoint, validates=validates
    )


def _claim_output(
    config: RunConfig, run_id: str, room: CheckpointSpace, held: contextlib.ExitStack
) -> None:
    """Locks the run's folder, removes leftovers of killed saves, and checks the disk space."""
    folder = Path(config.output_dir)
    owner = f"run {run_id} on {socket.gethostname()}, process {os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held.callback(_remove_if_empty, folder)
        held.enter_context(files.locked(folder / LOCK_NAME, owner))
    except BlockingIOError as error:
        raise OutputError(
            f"{folder} is {error.strerror}: two jobs would overwrite each other. Wait for it, stop "
            "it, or give another --output-dir."
        ) from error
    except OSError as error:
        raise OutputError(
            f"the run's folder {folder} cannot be written: {error}. Set --output-dir to another "
            "folder."
        ) from error
    sweep(folder / CHECKPOINTS)
    room.require(folder / CHECKPOINTS)


def _remove_if_empty(folder: Path) -> None:
    if not any(folder.iterdir()):
        folder.rmdir()


def _save_config(config: RunConfig) -> None:
    with files.atomic_file(Path(config.output_dir, CONFIG_NAME)) as temporary:
        config.save(temporary)


def _job_config(config: RunConfig, inputs: Inputs) -> JobConfig:
    tokenizer, template = inputs.tokenizer, inputs.template
    stored = {} if template is None else {STORED_KEY: store_template(template)}
    stored |= inherited_section(Path(config.output_dir, "checkpoints"), config.checkpoint.load)
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
        samples=inputs.samples,
        seq_length=config.data.seq_length,
        prefetch=config.data.prefetch,
        output_dir=Path(config.output_dir),
        resolved=config.plain() | stored,
        tokenizer_identity=tokenizer.identity,
        tokenizer_files=tokenizer_files(tokenizer),
        template=inputs.required_template,
    )


def _describe(outcome: Outcome, config: RunConfig) -> str:
    lines = [f"done: {outcome.steps} steps"]
    if outcome.stopped_early:
        lines[0] += ", stopped early: the validation loss no longer fell"
    if outcome.valid_loss is not None and outcome.best_step is not None:
        lines.append(f"best validation loss {outcome.valid_loss:.4f} at step {outcome.best_step}")
        root = Path(config.output_dir, CHECKPOINTS)
        best = root / iteration_name(outcome.best_step)
        if best.is_dir() and outcome.best_step == outcome.steps:
            lines.append(f"its checkpoint is the newest, {best}")
        elif best.is_dir():
            hint = root / BEST_NAME
            name = f"{hint}, which names it," if hint.is_file() else "it"
            lines.append(f"its checkpoint is {best}, not the newest: give {name} to use it")
    lines.append(f"everything is in {config.output_dir}")
    return "\n".join(lines)


def plan_training(config: RunConfig, *, world_size: int) -> int:
    """Prints what training would need, and checks configuration, layout and inputs as it would.

    The plan comes first: it needs no inputs, which may not exist yet.

    Returns:
        Exit code 0: everything exists and fits. Every fault raises.

    Raises:
        ConfigError: Inputs are missing, all in one message; or as for `open_inputs`.
    """
    missing, layout = missing_of_run(config), config.plan_layout(world_size)
    _print_plan(config, layout)
    refuse_missing(missing, "planned as above")
    inputs = open_inputs(config, world_size)
    asked, config, datasets = config.training, inputs.config, inputs.datasets
    _check_start(inputs)
    steps = config.training.train_steps
    assert steps is not None, "open_inputs resolves epochs to steps"
    console = make_console()
    if asked.train_steps is None:
        print_room(config, console)
    console.print(
        f"one epoch of the training data is {datasets.train.samples_per_epoch:,} samples of "
        f"{config.data.seq_length} tokens; the run reads "
        f"{steps * config.training.global_batch_size:,} in {steps:,} steps"
    )
    console.print("configuration, inputs and layout are valid; nothing was trained")
    return 0


def _check_start(inputs: Inputs) -> None:
    """Checks that the weights of checkpoint.load fit, without reading them.

    Raises:
        CheckpointError: There is no checkpoint.
        ConfigError: Its architecture or its tokenizer is another one.
    """
    config = inputs.config
    if config.checkpoint.load is not None:
        reader = CheckpointReader(newest_checkpoint(config.checkpoint.load))
        state.check_fit(reader, config.model, inputs.tokenizer.identity, inputs.required_template)


def _print_plan(config: RunConfig, layout: ParallelLayout) -> None:
    """Prints sizes and memory, with a usual vocabulary if it is not known yet."""
    training, model = config.training, config.model
    if model.vocab_size is None and Path(config.tokenizer).exists():
        config = with_vocabulary(config, load_tokenizer(config.tokenizer))
    is_known = config.model.vocab_size is not None
    config = dataclasses.replace(config, model=config.model.with_vocabulary(USUAL_VOCABULARY))
    model = config.model
    num_microbatches = check_batch(
        layout,
        micro_batch_size=training.micro_batch_size,
        global_batch_size=training.global_batch_size,
    )
    tokens = training.global_batch_size * config.data.seq_length
    steps = training.train_steps
    console = make_console()
    console.print(
        f"{model.num_parameters:,} parameters, {training.precision}, "
        f"recompute {model.recompute}, vocabulary {model.vocab_size} "
        f"(in memory {model.padded_vocab_size(layout.tensor_parallel_size)})"
        f"{'' if is_known else ', assumed, since there is no tokenizer yet'}\n"
        + (
            f"{training.epochs:g} x the data in steps of {tokens:,} tokens; "
            if steps is None
            else f"{steps} steps of {tokens:,} tokens = {steps * tokens:,} tokens; "
        )
        + f"{num_microbatches} micro-batches of {training.micro_batch_size} on each data-parallel "
        "rank"
    )
    print_plan(config, layout, console)


def print_plan(config: RunConfig, layout: ParallelLayout, console: Console) -> None:
    """Prints what training needs: memory on the ranks of each pipeline stage, and disk space."""
    training = config.training
    backend = planned_backend(config)
    plans = plan_memory(
        config.model,
        layout,
        training=training,
        seq_length=config.data.seq_length,
        lora=config.lora,
        backend=backend,
    )
    if config.optim.offload:
        plans = [plan.with_host_optimizer() for plan in plans]
    print_memory(plans, layout, console, backend=backend)
    if training.train_steps is not None:
        print_room(config, console)


def print_room(config: RunConfig, console: Console) -> None:
    """Prints the disk space of the run's checkpoints; its number of steps must be known."""
    room = disk_room(config).describe(Path(config.output_dir, CHECKPOINTS))
    console.print(room, soft_wrap=True, highlight=False)
