"""Runs a workflow step by step, with a ledger, under a lock; or shows what it would do."""

import collections
import contextlib
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import yaml

from megatron_chimed import files
from megatron_chimed.errors import (
    ConfigError,
    DataError,
    InterruptError,
    OutputError,
    ParallelError,
)
from megatron_chimed.workflow import artifacts
from megatron_chimed.workflow.artifacts import HashCache, Hashes
from megatron_chimed.workflow.declaration import Workflow
from megatron_chimed.workflow.ledger import Attempt, Ledger, Record, code_version, now
from megatron_chimed.workflow.preparation import PreparedStep
from megatron_chimed.workflow.staleness import (
    RerunPolicy,
    Staleness,
    assess,
    assess_steps,
    dependents_of,
    input_changes,
)
from megatron_chimed.workflow.step_process import SignalForwarder, run_logged

LOCK_NAME = ".lock"
HASHES_NAME = "hashes.json"
LAST_LINES = 10


def show_plan(workflow: Workflow, steps: Sequence[PreparedStep], policy: RerunPolicy) -> None:
    """Prints what a run would do with each step; writes nothing.

    Raises:
        ConfigError: A step is blocked, as it would be in the run.
        DataError: The ledger is damaged.
    """
    _check_start(steps, policy)
    _report_if_running(workflow.folder)
    ledger = Ledger(workflow.folder)
    cache = HashCache(workflow.folder / HASHES_NAME, _say)
    assessments = assess_steps(steps, ledger, policy, cache)
    _print_plan(workflow, steps, assessments, ledger)
    _refuse_blocked(steps, assessments)


def run_workflow(workflow: Workflow, steps: Sequence[PreparedStep], policy: RerunPolicy) -> int:
    """Runs every step that is not done.

    Returns:
        0 when every step is done, 130 when Ctrl-C ended one, else the failed step's exit code.

    Raises:
        ConfigError: A step is blocked.
        DataError: The ledger is damaged, or an input changed while a step read it.
        OutputError: Another run uses the folder, or the folder cannot be written; or a step
            succeeded without writing its output.
        InterruptError: Ctrl-C between two steps.
        ParallelError: SIGTERM between two steps.
    """
    _check_start(steps, policy)
    with _locked_folder(workflow.folder), SignalForwarder() as signals:
        ledger = Ledger(workflow.folder)
        cache = HashCache(workflow.folder / HASHES_NAME, _say)
        assessments = assess_steps(steps, ledger, policy, cache)
        _print_plan(workflow, steps, assessments, ledger)
        _refuse_blocked(steps, assessments)
        run = StepRunner(workflow, steps, ledger, cache, signals)
        run.record_policy(assessments, policy)
        return run.run()


class StepRunner:
    """Runs the steps of a workflow and keeps the ledger."""

    def __init__(
        self,
        workflow: Workflow,
        steps: Sequence[PreparedStep],
        ledger: Ledger,
        cache: HashCache,
        signals: SignalForwarder,
    ) -> None:
        self._workflow, self._steps = workflow, steps
        self._ledger, self._cache, self._signals = ledger, cache, signals
        self._code = code_version()

    def record_policy(self, assessments: Mapping[str, Staleness], policy: RerunPolicy) -> None:
        """Records what the user allowed, so that a killed run resumes without the flags."""
        dependents = dependents_of(self._steps, policy.from_step) if policy.from_step else set()
        for name, record in self._ledger.records.items():
            if name not in assessments or assessments[name].state == "done":
                continue
            if name == policy.from_step:
                record.is_forced = True
            if policy.accept_changes or name in dependents:
                record.again = "--accept-changes" if policy.accept_changes else "--from"
        self._save()

    def run(self) -> int:
        """Runs the steps in order; each is assessed again once its inputs exist."""
        for number, step in enumerate(self._steps, start=1):
            if self._signals.is_asked:
                kind = InterruptError if self._signals.is_interrupted else ParallelError
                raise kind(
                    f"stopped before step {step.declared.name}. The same command resumes there."
                )
            label = f"[{number}/{len(self._steps)}] {step.declared.name}"
            record = self._ledger.records.get(step.declared.name)
            assessment = assess(step, record, self._cache)
            _refuse_blocked([step], {step.declared.name: assessment})
            if assessment.state == "done":
                if record is not None and record.again is not None:
                    record.again = None
                    self._save()
                    _say(f"{label}: still done, its inputs are the same")
                continue
            code = self._perform(step, assessment, label)
            if code:
                return InterruptError.exit_code if self._signals.is_interrupted else code
        _say(f"done: all {len(self._steps)} steps; see {self._ledger.path}")
        return 0

    def _perform(self, step: PreparedStep, assessment: Staleness, label: str) -> int:
        """Runs a step and records it; returns its exit code."""
        record = self._begin(step, assessment)
        code = 0
        started = time.monotonic()
        if assessment.only_record:
            _say(f"{label}: {assessment.reason}")
        else:
            code = self._execute(step, label)
        attempt = record.attempts[-1]
        attempt.ended, attempt.exit_code = now(), code
        if code == 0:
            self._check_inputs(step, record)
            record.output_hashes = self._outputs(step)
        self._save()
        if code == 0:
            _say(f"{label}: done in {time.monotonic() - started:.0f} s")
        return code

    def _begin(self, step: PreparedStep, assessment: Staleness) -> Record:
        """Moves an old output aside and records what the step is about to read."""
        declared, ledger = step.declared, self._ledger
        before = ledger.records.get(declared.name)
        if assessment.replaces_output:
            # The output first: killed in between, the step is finished and its output is missing.
            moved_to = artifacts.set_aside(declared.kind.output_type, declared.output)
            ledger.replace(declared.name, moved_to)
            if moved_to is not None:
                _say(f"the old output of {declared.name} is now {moved_to}")
            before = None
        inputs = [
            {
                "key": item.key,
                "path": item.path,
                "hashes": artifacts.hash_artifact(item.type, item.path, self._cache),
            }
            for item in step.inputs
        ]
        record = Record(
            kind=declared.kind.tool.removesuffix(".py"),
            command=list(step.command),
            config=dict(step.config),
            result_config=step.result_config(),
            seeds=step.seeds,
            inputs=inputs,
            output=declared.output,
            attempts=before.attempts if before else [],
        )
        if not assessment.only_record:
            record.attempts.append(Attempt(started=now(), code_version=self._code))
        ledger.records[declared.name] = record
        self._save()
        return record

    def _execute(self, step: PreparedStep, label: str) -> int:
        """Runs the command and shows its output indented; returns its exit code."""
        log = self._workflow.folder / "logs" / f"{step.declared.name}.log"
        if step.config_path is not None:
            text = yaml.safe_dump(_plain(step.config), allow_unicode=True, sort_keys=False)
            files.write_text(step.config_path, text)
        Path(step.declared.output).absolute().parent.mkdir(parents=True, exist_ok=True)
        log.parent.mkdir(exist_ok=True)
        with open(log, "a", encoding="utf-8") as stream:
            stream.write(f"\n--- {now()} {shlex.join(step.command)}\n")
        _say(f"{label}: {shlex.join(step.command)}")
        last: collections.deque[str] = collections.deque(maxlen=LAST_LINES)

        def show(line: str) -> None:
            last.append(line)
            _say(f"    | {line}")

        started = time.monotonic()
        code = run_logged(step.command, log, self._signals, show)
        seconds = time.monotonic() - started
        if code == 0:
            return 0
        how = "failed"
        if self._signals.is_asked:
            how = f"stopped by {'Ctrl-C' if self._signals.is_interrupted else 'a signal'}"
        lines = "\n".join(f"    | {line}" for line in last)
        print(
            f"{label}: {how} with exit code {code} after {seconds:.0f} s; the same command resumes "
            f"here. The end of its log, {log}:\n{lines}",
            file=sys.stderr,
            flush=True,
        )
        return code

    def _check_inputs(self, step: PreparedStep, record: Record) -> None:
        if changes := input_changes(step, record, self._cache):
            self._save()
            raise DataError(
                f"the inputs of step {step.declared.name} changed while it ran: "
                f"{'; '.join(changes)}. Its output is not used. Start again with "
                f"--from {step.declared.name} once nothing changes its inputs any more."
            )

    def _outputs(self, step: PreparedStep) -> Hashes:
        declared = step.declared
        try:
            return artifacts.hash_artifact(declared.kind.output_type, declared.output, self._cache)
        except ConfigError as error:
            self._save()
            raise OutputError(
                f"step {declared.name} ended with exit code 0, but without its output: {error}"
            ) from None

    def _save(self) -> None:
        self._cache.save()
        self._ledger.save(self._workflow.path)


@contextlib.contextmanager
def _locked_folder(folder: Path) -> Iterator[None]:
    """Holds the lock of a workflow's folder.

    Raises:
        OutputError: Another run holds it.
    """
    owner = f"process {os.getpid()} on {socket.gethostname()}, since {now()}"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with files.locked(folder / LOCK_NAME, owner):
            yield
    except BlockingIOError as error:
        raise OutputError(
            f"{folder} is {error.strerror}: one run at a time may use a folder. Wait for it, "
            "or stop it."
        ) from None


def _report_if_running(folder: Path) -> None:
    lock = folder / LOCK_NAME
    if not lock.exists():
        return
    try:
        with files.locked(lock, "a plan"):
            pass
    except BlockingIOError as error:
        _say(f"{folder} is {error.strerror}: its running step is shown as interrupted")


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _check_start(steps: Sequence[PreparedStep], policy: RerunPolicy) -> None:
    names = [step.declared.name for step in steps]
    if policy.from_step is not None and policy.from_step not in names:
        raise ConfigError(f"--from {policy.from_step}: the steps are {', '.join(names)}.")


def _print_plan(
    workflow: Workflow,
    steps: Sequence[PreparedStep],
    assessments: Mapping[str, Staleness],
    ledger: Ledger,
) -> None:
    code = code_version()
    _say(f"{workflow.path}: {len(steps)} steps in {workflow.folder}")
    width = max(len(step.declared.name) for step in steps)
    for number, step in enumerate(steps, start=1):
        name, assessment = step.declared.name, assessments[step.declared.name]
        reason = assessment.reason
        if assessment.state == "done" and ledger.records[name].attempts[-1].code_version != code:
            reason += ", by another version of the code"
        _say(f"{number:>4}  {name:<{width}}  {assessment.state:<7}  {reason}")
    if unknown := [name for name in ledger.records if name not in assessments]:
        _say(f"the ledger has steps that are no longer declared: {', '.join(unknown)}")


def _refuse_blocked(steps: Sequence[PreparedStep], assessments: Mapping[str, Staleness]) -> None:
    blocked = {
        step.declared.name: assessments[step.declared.name]
        for step in steps
        if assessments[step.declared.name].state == "blocked"
    }
    if not blocked:
        return
    reasons = "\n".join(f"  {name}: {assessment.reason}" for name, assessment in blocked.items())
    advice = ""
    if changed := [name for name, assessment in blocked.items() if assessment.needs_permission]:
        advice = (
            "\nStale outputs are neither used nor made again unless you ask for it. Undo the "
            f"change; or give --from {changed[0]} to run that step and its dependents again, or "
            "--accept-changes for all. Finished outputs are moved aside, not removed; an "
            "interrupted step resumes if only its settings changed."
        )
    raise ConfigError(f"steps are blocked:\n{reasons}{advice}")


def _say(text: str) -> None:
    print(text, flush=True)
