"""The training loop. It knows no stage: a stage gives forward and loss, the engine schedules them.

Read `train` for the order of things and `train_step` for one step. Everything that is not the step
(validation, saving) happens between steps, in the same order on every rank.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from megatron_chimed.checkpoint.commit import iteration_name
from megatron_chimed.engine import Batch, peers_may_fail, run_schedule, synchronize_parameters
from megatron_chimed.errors import ChimedError, ConfigError, NumericError
from megatron_chimed.model import count_adapters
from megatron_chimed.observe.flops import model_flops_per_token
from megatron_chimed.observe.logger import RunLogger, StepRecord
from megatron_chimed.observe.timers import Stopwatch
from megatron_chimed.optim import learning_rate
from megatron_chimed.training import state
from megatron_chimed.training.job import Job, JobConfig
from megatron_chimed.training.preemption import Preemption, stopped_on_request
from megatron_chimed.training.samples import answer_samples
from megatron_chimed.training.selftest import check_isolation
from megatron_chimed.training.validate import validate

# fp16: from the default scale to its floor of 1 takes 12 halvings, each of 2 overflows.
MAX_SKIPPED_STEPS = 40


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended."""

    steps: int
    loss: float | None
    """Of the last step; None when there was nothing left to do."""
    valid_loss: float | None
    """Lowest validation loss; None without validation data."""
    best_step: int | None
    checkpoint: Path | None
    """The last one that was written."""
    stopped_early: bool
    asked: int | None
    """The signal that asked it to stop when it was about to end anyway; None: none did."""


def train(job: Job, *, run_id: str, starts_from: str) -> Outcome:
    """Trains until the last step or until the validation loss stops falling.

    Args:
        job: The job, its weights already set (`state.restore`).
        run_id: Names temporary folders of checkpoints.
        starts_from: What `state.restore` said; reported.

    Raises:
        ConfigError: Settings need validation data, and there are none.
        NumericError: Loss or gradient is not finite.
        OutputError: A checkpoint or log cannot be written.
        ParallelError: A peer was lost, or SIGTERM asked to stop: the step it came in is saved, as
            after Ctrl-C (InterruptError).
    """
    training, progress = job.config.training, job.progress
    _check_validation(job)
    folder = state.checkpoints_folder(job.config)
    # The logger ends first: what closes its trackers is not cut short by SIGTERM.
    with Preemption(job.agreement, folder) as preemption, _logger(job) as logger:
        _begin(job, logger, preemption, starts_from)
        batches = job.batches(
            job.datasets.train,
            consumed=progress.consumed_samples,
            prefetch=job.config.prefetch,
        )
        end = min(training.train_steps, training.stop_step or training.train_steps)
        watch, loss, saved, stop = Stopwatch(), None, None, _out_of_patience(job)
        if progress.step >= end or stop:
            logger.message(_nothing_to_train(progress.step, end, stop))
        while progress.step < end and not stop:
            record = train_step(job, next(batches), watch)
            loss = record.loss
            logger.step(record)
            last = progress.step == end
            # A stop on the way is no end: what it validates, an unbroken run would not.
            over = progress.step == training.train_steps
            improved = _validate_if_due(job, logger, preemption, last=over)
            stop = _out_of_patience(job)
            is_done = (last or stop) and not progress.validation_due
            number = None if is_done else preemption.asked()
            saves = number is not None or _save_is_due(job, last=last or stop, improved=improved)
            if saves:
                saved = _save(job, logger, run_id)
            if number is not None:
                raise _stopped(job, number)
            if saves or improved is not None:
                watch.lap()  # neither is part of the next step's time
        batches.close()
        if stop or progress.step >= training.train_steps:
            _test(job, logger, preemption)
        return Outcome(
            steps=progress.step,
            loss=loss,
            valid_loss=progress.best_valid_loss,
            best_step=progress.best_step,
            checkpoint=saved,
            stopped_early=stop,
            asked=preemption.asked(),
        )


def train_step(job: Job, micro_batches: list[Batch], watch: Stopwatch) -> StepRecord:
    """One optimizer step over one global batch.

    Raises:
        NumericError: The loss or the gradient norm is not finite; no weight was changed.
    """
    config, progress = job.config, job.progress
    step = progress.step + 1
    job.optimizer.zero_grad()
    with peers_may_fail(f"training step {step}"):
        totals = run_schedule(job.stage, job.wrapped, micro_batches, ranks=job.ranks)
    if not math.isfinite(totals.loss):
        first = progress.consumed_samples
        raise NumericError(
            f"the loss of step {step} is {totals.loss}: no weight was changed. Its samples are "
            f"{first}..{first + config.training.global_batch_size - 1}. Look at them with "
            "tools/inspect_dataset.py, lower --optim.lr, or use bf16 instead of fp16."
        )
    rate = learning_rate(config.optim, step=step, total_steps=config.training.train_steps)
    with peers_may_fail(f"updating weights in step {step}"):
        update = job.optimizer.update(learning_rate=rate)
    progress.skipped_in_a_row = progress.skipped_in_a_row + 1 if update.skipped else 0
    if progress.skipped_in_a_row >= MAX_SKIPPED_STEPS:
        raise NumericError(
            f"{MAX_SKIPPED_STEPS} steps in a row overflowed fp16 (loss scale now "
            f"{update.loss_scale:g}), so nothing is learned. Use --training.precision bf16, or "
            "lower --optim.lr."
        )
    progress.step = step
    progress.consumed_samples += config.training.global_batch_size
    return StepRecord(
        step=step,
        loss=totals.loss,
        learning_rate=rate,
        grad_norm=update.grad_norm,
        tokens=config.training.global_batch_size * config.seq_length,
        counted=totals.count,
        seconds=watch.lap(),
        consumed_samples=progress.consumed_samples,
        skipped=update.skipped,
        loss_scale=update.loss_scale if config.training.precision == "fp16" else None,
        metrics=job.stage.averages(totals),
        sources=job.stage.by_source(totals),
    )


def _check_validation(job: Job) -> None:
    training = job.config.training
    names = ("early_stop_patience", "eval_at_start")
    asked = {f"training.{name}": getattr(training, name) for name in names}
    asked["logging.sample_prompts"] = job.config.logging.sample_prompts
    for name, value in asked.items():
        if value and job.datasets.valid is None:
            raise ConfigError(
                f"{name} is {value}, but there are no validation data, so it would do nothing. Set "
                "data.valid or data.split, or leave it out."
            )


def _begin(job: Job, logger: RunLogger, preemption: Preemption, starts_from: str) -> None:
    """Says what the run starts from, what its data leave out, and that packed samples are apart.

    Trackers are opened here, once the configuration is known to be valid.

    Raises:
        InterruptError: It was asked to stop before the first step (ParallelError by SIGTERM).
    """
    logger.track(job.config.resolved)
    logger.message(f"{job.ranks.layout.describe()}: {starts_from}")
    for note in job.datasets.notes:
        logger.message(note)
    if job.config.training.self_test and (found := check_isolation(job)):
        logger.message(found)
    if job.config.training.eval_at_start and job.progress.step == 0:
        _validate(job, logger, preemption)  # no checkpoint holds these weights: they are no best
    if job.progress.validation_due and job.datasets.valid is not None:
        _judge(job, _validate(job, logger, preemption))
        state.point_at_best(job)
    if (number := preemption.asked()) is not None:
        raise _stopped(job, number)


def _validate_if_due(
    job: Job, logger: RunLogger, preemption: Preemption, *, last: bool
) -> bool | None:
    """Whether the validation loss is the best so far; None when nothing was validated."""
    progress, interval = job.progress, job.config.training.eval_interval
    is_due = last or (interval and progress.step % interval == 0)
    if job.datasets.valid is None or not is_due:
        return None
    return _judge(job, _validate(job, logger, preemption))


def _judge(job: Job, loss: float | None) -> bool | None:
    """Notes a validation, or that it is still to be done; whether it is the best so far."""
    progress = job.progress
    progress.validation_due = loss is None
    if loss is None:
        return None
    improved = progress.best_valid_loss is None or loss < progress.best_valid_loss
    if improved:
        progress.best_valid_loss, progress.best_step = loss, progress.step
    progress.validations_since_best = 0 if improved else progress.validations_since_best + 1
    return improved


def _validate(job: Job, logger: RunLogger, preemption: Preemption) -> float | None:
    """The loss on the validation data, reported; None if the run was asked to stop meanwhile."""
    with peers_may_fail(f"validating after step {job.progress.step}"):
        totals = validate(job, job.datasets.valid, preemption.is_asked)
    if totals is None:
        return None
    step, stage, samples = job.progress.step, job.stage, job.config.samples
    logger.validation(
        step,
        totals.loss,
        sources=stage.by_source(totals),
        details=stage.details(totals),
        **stage.averages(totals),
    )
    if samples is not None and not preemption.is_asked():
        with peers_may_fail(f"answering the sample prompts after step {step}"):
            synchronize_parameters(job.wrapped)
            logger.samples(step, answer_samples(samples, job.chunks, job.ranks))
    return totals.loss


def _test(job: Job, logger: RunLogger, preemption: Preemption) -> None:
    """The loss on the test data, once, when the run is over; of the weights as they end."""
    if job.datasets.test is None:
        return
    with peers_may_fail("testing"):
        totals = validate(job, job.datasets.test, preemption.is_asked)
    if totals is None:
        raise _stopped(job, preemption.asked(), left="its test")
    sources, averages = job.stage.by_source(totals), job.stage.averages(totals)
    logger.test(job.progress.step, totals.loss, sources=sources, **averages)


def _save(job: Job, logger: RunLogger, run_id: str) -> Path:
    saved = state.save(job, run_id)
    logger.event("checkpoint", job.progress.step, path=str(saved))
    logger.message(f"checkpoint: {saved}")
    return saved


def _nothing_to_train(step: int, end: int, stop: bool) -> str:
    why = " and its validation loss no longer falls" if stop else ""
    return f"nothing to train: the checkpoint is at step {step}, the end is {end}{why}"


def _stopped(job: Job, number: int, left: str = "") -> ChimedError:
    """What ends a run that was asked to stop by a signal, its last step saved."""
    step = job.progress.step
    checkpoint = state.checkpoints_folder(job.config) / iteration_name(step) if step else None
    if job.progress.validation_due:
        left = "its validation"
    return stopped_on_request(number, step, checkpoint, left)


def _out_of_patience(job: Job) -> bool:
    patience = job.config.training.early_stop_patience
    return bool(patience) and job.progress.validations_since_best >= patience


def _save_is_due(job: Job, *, last: bool, improved: bool | None) -> bool:
    interval = job.config.checkpoint.save_interval
    keeps_best = job.config.checkpoint.keep_best and improved is True
    return last or keeps_best or bool(interval and job.progress.step % interval == 0)


def _logger(job: Job) -> RunLogger:
    return RunLogger(
        job.config.logging,
        job.config.output_dir,
        total_steps=job.config.training.train_steps,
        start_step=job.progress.step,
        flops_per_token=_flops_per_token(job.config),
        num_devices=job.ranks.layout.world_size,
        is_writer=job.is_writer,
    )


def _flops_per_token(config: JobConfig) -> int:
    model, adapters = config.model, count_adapters(config.model, config.lora)
    embedding, head = model.vocab_size * model.hidden_size, model.hidden_size
    # With adapters, of the base model only a reward model's head is trained.
    frozen = model.num_parameters - embedding - (head if model.head == "score" else 0)
    return model_flops_per_token(
        num_parameters=model.num_parameters + adapters,
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        num_layers=model.num_layers,
        sequence_length=config.seq_length,
        num_frozen=frozen if adapters else 0,
    )
