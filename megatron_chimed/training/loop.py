"""The training loop, the same for every stage: an objective gives forward pass and loss.

Read `train` for the order of events and `train_step` for one step. Everything else (validation,
saving) happens between steps, in the same order on every rank.
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
from megatron_chimed.training.start_report import report_start
from megatron_chimed.training.validation import validate

# fp16: from the default scale to its floor of 1 takes 12 halvings, each of 2 overflows.
MAX_SKIPPED_STEPS = 40


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended."""

    steps: int
    loss: float | None
    """Loss of the last step; None when no step was left."""
    valid_loss: float | None
    """Lowest validation loss; None without validation data."""
    best_step: int | None
    checkpoint: Path | None
    """The last one written by this start."""
    stopped_early: bool
    stop_signal: int | None
    """A signal that asked the run to stop when it was about to end anyway."""


def train(job: Job, *, run_id: str, starts_from: str) -> Outcome:
    """Trains until the last step or until the validation loss stops falling.

    Args:
        job: The job, its weights already set (`state.restore`).
        run_id: Suffix of temporary checkpoint folders.
        starts_from: The line that `state.restore` returned, for the log.

    Raises:
        ConfigError: Settings need validation data, but there are none.
        NumericError: Loss or gradient is not finite.
        OutputError: A checkpoint or log cannot be written.
        ParallelError: A peer was lost, or SIGTERM came: the current step is saved, as after Ctrl-C
            (InterruptError).
    """
    training, progress = job.config.training, job.progress
    _check_validation(job)
    folder = state.checkpoints_folder(job.config)
    # The logger closes first, so that SIGTERM does not interrupt the trackers' shutdown.
    with Preemption(job.agreement, folder) as preemption, _logger(job) as logger:
        _begin(job, logger, preemption, starts_from)
        batches = job.batches(
            job.datasets.train,
            consumed=progress.consumed_samples,
            prefetch=job.config.prefetch,
        )
        end = training.end_step
        watch, loss, saved, stop = Stopwatch(), None, None, _out_of_patience(job)
        if progress.step >= end or stop:
            logger.message(_nothing_to_train(progress.step, end, stop))
        while progress.step < end and not stop:
            record = train_step(job, next(batches), watch)
            loss = record.loss
            logger.step(record)
            last = progress.step == end
            # `stop_step` is no reason to validate: an uninterrupted run would not.
            is_last = progress.step == training.total_steps
            improved = _validate_if_due(job, logger, preemption, last=is_last)
            stop = _out_of_patience(job)
            is_done = (last or stop) and not progress.validation_due
            number = None if is_done else preemption.requested()
            saves = number is not None or _save_is_due(job, last=last or stop, improved=improved)
            if saves:
                saved = _save(job, logger, run_id)
            if number is not None:
                raise _stopped(job, number)
            if saves or improved is not None:
                watch.lap()  # neither counts as time of the next step
        batches.close()
        if stop or progress.step >= training.total_steps:
            _test(job, logger, preemption)
        return Outcome(
            steps=progress.step,
            loss=loss,
            valid_loss=progress.best_valid_loss,
            best_step=progress.best_step,
            checkpoint=saved,
            stopped_early=stop,
            stop_signal=preemption.requested(),
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
        totals = run_schedule(job.objective, job.wrapped, micro_batches, ranks=job.ranks)
    if not math.isfinite(totals.loss):
        first = progress.consumed_samples
        raise NumericError(
            f"the loss of step {step} is {totals.loss}: no weight was changed. Its samples are "
            f"{first}..{first + config.training.global_batch_size - 1}. Inspect them with "
            "tools/inspect_dataset.py, lower --optim.lr, or use bf16 instead of fp16."
        )
    rate = learning_rate(config.optim, step=step, total_steps=config.training.total_steps)
    with peers_may_fail(f"updating weights in step {step}"):
        update = job.optimizer.update(learning_rate=rate)
    progress.skipped_in_a_row = progress.skipped_in_a_row + 1 if update.skipped else 0
    if progress.skipped_in_a_row >= MAX_SKIPPED_STEPS:
        raise NumericError(
            f"{MAX_SKIPPED_STEPS} steps in a row overflowed fp16 (loss scale now "
            f"{update.loss_scale:g}), so no weight changes. Use --training.precision bf16, or "
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
        metrics=job.objective.averages(totals),
        sources=job.objective.by_source(totals),
    )


def _check_validation(job: Job) -> None:
    training = job.config.training
    names = ("early_stop_patience", "eval_at_start")
    settings = {f"training.{name}": getattr(training, name) for name in names}
    settings["logging.sample_prompts"] = job.config.logging.sample_prompts
    for name, value in settings.items():
        if value and job.datasets.valid is None:
            raise ConfigError(
                f"{name} is {value}, but there are no validation data, so it would do nothing. Set "
                "data.valid or data.split, or leave it out."
            )


def _begin(job: Job, logger: RunLogger, preemption: Preemption, starts_from: str) -> None:
    """Opens the trackers, logs what the run starts from, and does what comes before the first step.

    Raises:
        InterruptError: Ctrl-C came before the first step (ParallelError for SIGTERM).
    """
    report_start(job, logger)
    logger.message(f"{job.ranks.layout.describe()}: {starts_from}")
    for note in job.datasets.notes:
        logger.message(note)
    if job.config.training.self_test and (found := check_isolation(job)):
        logger.message(found)
    if job.config.training.eval_at_start and job.progress.step == 0:
        # Not recorded as the best loss: no checkpoint holds these weights.
        _validate(job, logger, preemption)
    if job.progress.validation_due and job.datasets.valid is not None:
        _record_validation(job, _validate(job, logger, preemption))
        state.point_at_best(job)
    if (number := preemption.requested()) is not None:
        raise _stopped(job, number)


def _validate_if_due(
    job: Job, logger: RunLogger, preemption: Preemption, *, last: bool
) -> bool | None:
    """Whether the validation loss is the best so far; None if nothing was validated."""
    progress, interval = job.progress, job.config.training.eval_interval
    is_due = last or (interval and progress.step % interval == 0)
    if job.datasets.valid is None or not is_due:
        return None
    return _record_validation(job, _validate(job, logger, preemption))


def _record_validation(job: Job, loss: float | None) -> bool | None:
    """Records a validation, or that it is still due; returns whether it is the best so far."""
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
    """Reports and returns the validation loss; None if the run was asked to stop meanwhile."""
    assert job.datasets.valid is not None, "no validation data"
    with peers_may_fail(f"validating after step {job.progress.step}"):
        totals = validate(job, job.datasets.valid, preemption.is_requested)
    if totals is None:
        return None
    step, objective, samples = job.progress.step, job.objective, job.config.samples
    logger.validation(
        step,
        totals.loss,
        sources=objective.by_source(totals),
        details=objective.details(totals),
        **objective.averages(totals),
    )
    if samples is not None and not preemption.is_requested():
        with peers_may_fail(f"answering the sample prompts after step {step}"):
            synchronize_parameters(job.wrapped)
            logger.samples(step, answer_samples(samples, job.chunks, job.ranks))
    return totals.loss


def _test(job: Job, logger: RunLogger, preemption: Preemption) -> None:
    """Reports the loss on the test data, once, with the final weights."""
    if job.datasets.test is None:
        return
    with peers_may_fail("testing"):
        totals = validate(job, job.datasets.test, preemption.is_requested)
    if totals is None:
        number = preemption.requested()
        assert number is not None, "a test was stopped without a signal"
        raise _stopped(job, number, left="its test")
    sources, averages = job.objective.by_source(totals), job.objective.averages(totals)
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
    """The error that ends a run after a signal asked it to stop and its last step was saved."""
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
        total_steps=job.config.training.total_steps,
        start_step=job.progress.step,
        flops_per_token=_flops_per_token(job.config),
        num_devices=job.ranks.layout.world_size,
        is_writer=job.is_writer,
    )


def _flops_per_token(config: JobConfig) -> int:
    model, adapters = config.model, count_adapters(config.model, config.lora)
    embedding, head = config.model.known_vocab_size * model.hidden_size, model.hidden_size
    # A tied embedding is looked up and multiplied.
    parameters = model.num_parameters + (embedding if model.has_tied_head else 0)
    # With adapters, the only trained weight of the base model is a reward model's head.
    frozen = parameters - embedding - (head if model.head == "score" else 0)
    return model_flops_per_token(
        num_parameters=parameters + adapters,
        vocab_size=config.model.known_vocab_size,
        hidden_size=model.hidden_size,
        num_layers=model.num_layers,
        sequence_length=config.seq_length,
        attention_width=model.query_width,
        num_frozen=frozen if adapters else 0,
    )
