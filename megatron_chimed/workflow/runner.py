"""Runs a pipeline step by step, with a ledger, under a lock; or shows what it would do."""

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
from megatron_chimed.workflow import contents
from megatron_chimed.workflow.commands import Stopper, run_logged
from megatron_chimed.workflow.contents import HashCache, Hashes
from megatron_chimed.workflow.declaration import Pipeline
from megatron_chimed.workflow.ledger import Attempt, Ledger, Record, code_version, now
from megatron_chimed.workflow.staleness import (
    Consent,
    Outlook,
    followers_of,
    input_changes,
    judge,
    survey,
)
from megatron_chimed.workflow.work import Work

LOCK_NAME = ".lock"
HASHES_NAME = "hashes.json"
LAST_LINES = 10


def show_plan(pipeline: Pipeline, works: Sequence[Work], consent: Consent) -> None:
    """Prints what a run would do with each step; writes nothing.

    Raises:
        ConfigError: A step is blocked, as it would be in the run.
        DataError: The ledger is damaged.
    """
    _check_start(works, consent)
    _tell_if_running(pipeline.folder)
    ledger = Ledger(pipeline.folder)
    cache = HashCache(pipeline.folder / HASHES_NAME, _say)
    outlooks = survey(works, ledger, consent, cache)
    _print_outlooks(pipeline, works, outlooks, ledger)
    _refuse_blocked(works, outlooks)


def run_pipeline(pipeline: Pipeline, works: Sequence[Work], consent: Consent) -> int:
    """Runs what is not done.

    Returns:
        0 when every step is done, 130 when Ctrl-C ended one, else the exit code of the step that
        failed.

    Raises:
        ConfigError: A step is blocked.
        DataError: The ledger is damaged, or an input changed while a step read it.
        OutputError: Another run is at work in the folder, or it cannot be written; a step ended
            well, but its output is not there.
        InterruptError: Ctrl-C between two steps.
        ParallelError: SIGTERM between two steps.
    """
    _check_start(works, consent)
    with _claimed(pipeline.folder), Stopper() as stopper:
        ledger = Ledger(pipeline.folder)
        cache = HashCache(pipeline.folder / HASHES_NAME, _say)
        outlooks = survey(works, ledger, consent, cache)
        _print_outlooks(pipeline, works, outlooks, ledger)
        _refuse_blocked(works, outlooks)
        run = _Run(pipeline, works, ledger, cache, stopper)
        run.note_consent(outlooks, consent)
        return run.work()


class _Run:
    def __init__(
        self,
        pipeline: Pipeline,
        works: Sequence[Work],
        ledger: Ledger,
        cache: HashCache,
        stopper: Stopper,
    ) -> None:
        self._pipeline, self._works = pipeline, works
        self._ledger, self._cache, self._stopper = ledger, cache, stopper
        self._code = code_version()

    def note_consent(self, outlooks: Mapping[str, Outlook], consent: Consent) -> None:
        """Keeps what was allowed, so that a run which is killed now goes on without the flags."""
        followers = followers_of(self._works, consent.start) if consent.start else set()
        for name, record in self._ledger.records.items():
            if name not in outlooks or outlooks[name].state == "done":
                continue
            if name == consent.start:
                record.is_forced = True
            if consent.accept_changes or name in followers:
                record.again = "--accept-changes" if consent.accept_changes else "--from"
        self._save()

    def work(self) -> int:
        """Every step in order; judged again when its turn comes, since what it reads is there."""
        for number, work in enumerate(self._works, start=1):
            if self._stopper.is_asked:
                kind = InterruptError if self._stopper.is_interrupted else ParallelError
                raise kind(
                    f"stopped before step {work.step.name}. The same command goes on from there."
                )
            label = f"[{number}/{len(self._works)}] {work.step.name}"
            record = self._ledger.records.get(work.step.name)
            outlook = judge(work, record, self._cache)
            _refuse_blocked([work], {work.step.name: outlook})
            if outlook.state == "done":
                if record.again is not None:
                    record.again = None
                    self._save()
                    _say(f"{label}: still done, it would read the same")
                continue
            code = self._perform(work, outlook, label)
            if code:
                return InterruptError.exit_code if self._stopper.is_interrupted else code
        _say(f"done: all {len(self._works)} steps; {self._ledger.path} says how")
        return 0

    def _perform(self, work: Work, outlook: Outlook, label: str) -> int:
        """Runs a step and records it; returns its exit code."""
        record = self._begin(work, outlook)
        code = 0
        started = time.monotonic()
        if outlook.is_adopted:
            _say(f"{label}: {outlook.why}")
        else:
            code = self._execute(work, label)
        attempt = record.attempts[-1]
        attempt.ended, attempt.exit_code = now(), code
        if code == 0:
            self._check_inputs(work, record)
            record.output_hashes = self._outputs(work)
        self._save()
        if code == 0:
            _say(f"{label}: done in {time.monotonic() - started:.0f} s")
        return code

    def _begin(self, work: Work, outlook: Outlook) -> Record:
        """Moves an old output away and writes down what the step is about to be made from."""
        step, ledger = work.step, self._ledger
        before = ledger.records.get(step.name)
        if outlook.is_anew:
            # First the output: killed in between, the step is finished and its output gone.
            moved_to = contents.set_aside(step.kind.makes, step.output)
            ledger.replace(step.name, moved_to)
            if moved_to is not None:
                _say(f"the old output of {step.name} is now {moved_to}")
            before = None
        inputs = [
            {
                "key": item.key,
                "path": item.path,
                "hashes": contents.hashes_of(item.content, item.path, self._cache),
            }
            for item in work.inputs
        ]
        record = Record(
            kind=step.kind.tool.removesuffix(".py"),
            command=list(work.command),
            config=dict(work.config),
            result_config=work.result_config(),
            seeds=work.seeds,
            inputs=inputs,
            output=step.output,
            attempts=before.attempts if before else [],
        )
        if not outlook.is_adopted:
            record.attempts.append(Attempt(started=now(), code_version=self._code))
        ledger.records[step.name] = record
        self._save()
        return record

    def _execute(self, work: Work, label: str) -> int:
        """Runs the command, its output behind a margin."""
        log = self._pipeline.folder / "logs" / f"{work.step.name}.log"
        if work.config_path is not None:
            text = yaml.safe_dump(_plain(work.config), allow_unicode=True, sort_keys=False)
            files.write_text(work.config_path, text)
        Path(work.step.output).absolute().parent.mkdir(parents=True, exist_ok=True)
        log.parent.mkdir(exist_ok=True)
        with open(log, "a", encoding="utf-8") as stream:
            stream.write(f"\n--- {now()} {shlex.join(work.command)}\n")
        _say(f"{label}: {shlex.join(work.command)}")
        last: collections.deque[str] = collections.deque(maxlen=LAST_LINES)

        def show(line: str) -> None:
            last.append(line)
            _say(f"    | {line}")

        started = time.monotonic()
        code = run_logged(work.command, log, self._stopper, show)
        seconds = time.monotonic() - started
        if code == 0:
            return 0
        how = "failed"
        if self._stopper.is_asked:
            how = f"stopped by {'Ctrl-C' if self._stopper.is_interrupted else 'a signal'}"
        lines = "\n".join(f"    | {line}" for line in last)
        print(
            f"{label}: {how} with exit code {code} after {seconds:.0f} s; the same command goes on "
            f"from here. Its log is {log}, which ends:\n{lines}",
            file=sys.stderr,
            flush=True,
        )
        return code

    def _check_inputs(self, work: Work, record: Record) -> None:
        if changes := input_changes(work, record, self._cache):
            self._save()
            raise DataError(
                f"step {work.step.name} ended, but what it read changed meanwhile: "
                f"{'; '.join(changes)}. Its output is not used. Start again with "
                f"--from {work.step.name} when nothing changes its inputs any more."
            )

    def _outputs(self, work: Work) -> Hashes:
        step = work.step
        try:
            return contents.hashes_of(step.kind.makes, step.output, self._cache)
        except ConfigError as error:
            self._save()
            raise OutputError(
                f"step {step.name} ended with exit code 0, but its output is not there: {error}"
            ) from None

    def _save(self) -> None:
        self._cache.save()
        self._ledger.save(self._pipeline.path)


@contextlib.contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Holds the lock of a pipeline's folder.

    Raises:
        OutputError: Another run has it.
    """
    owner = f"process {os.getpid()} on {socket.gethostname()}, since {now()}"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with files.locked(folder / LOCK_NAME, owner):
            yield
    except BlockingIOError as error:
        raise OutputError(
            f"{folder} is {error.strerror}: one pipeline runs in a folder at a time. Wait for it, "
            "or stop it."
        ) from None


def _tell_if_running(folder: Path) -> None:
    lock = folder / LOCK_NAME
    if not lock.exists():
        return
    try:
        with files.locked(lock, "a plan"):
            pass
    except BlockingIOError as error:
        _say(f"{folder} is {error.strerror}: its running step is shown as an interrupted one")


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _check_start(works: Sequence[Work], consent: Consent) -> None:
    names = [work.step.name for work in works]
    if consent.start is not None and consent.start not in names:
        raise ConfigError(f"--from {consent.start}: the steps are {', '.join(names)}.")


def _print_outlooks(
    pipeline: Pipeline, works: Sequence[Work], outlooks: Mapping[str, Outlook], ledger: Ledger
) -> None:
    code = code_version()
    _say(f"{pipeline.path}: {len(works)} steps in {pipeline.folder}")
    width = max(len(work.step.name) for work in works)
    for number, work in enumerate(works, start=1):
        name, outlook = work.step.name, outlooks[work.step.name]
        why = outlook.why
        if outlook.state == "done" and ledger.records[name].attempts[-1].code_version != code:
            why += ", by other code"
        _say(f"{number:>4}  {name:<{width}}  {outlook.state:<7}  {why}")
    if unknown := [name for name in ledger.records if name not in outlooks]:
        _say(f"the ledger knows steps that are not declared any more: {', '.join(unknown)}")


def _refuse_blocked(works: Sequence[Work], outlooks: Mapping[str, Outlook]) -> None:
    blocked = {
        work.step.name: outlooks[work.step.name]
        for work in works
        if outlooks[work.step.name].state == "blocked"
    }
    if not blocked:
        return
    reasons = "\n".join(f"  {name}: {outlook.why}" for name, outlook in blocked.items())
    advice = ""
    if changed := [name for name, outlook in blocked.items() if outlook.needs_consent]:
        advice = (
            "\nWhat was made from something else is neither used nor made again unasked. Set it "
            f"back; or give --from {changed[0]} to run that step and what depends on it again, or "
            "--accept-changes for all. Finished outputs are moved aside, not removed; a step that "
            "was interrupted goes on if only its settings changed."
        )
    raise ConfigError(f"steps are blocked:\n{reasons}{advice}")


def _say(text: str) -> None:
    print(text, flush=True)
