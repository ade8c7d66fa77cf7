"""What becomes of each step when the pipeline is started, and why; nothing is changed here.

A step is done when it is finished, its inputs and its configuration are what they were, and its
output is what it was. What was finished and no longer fits is never used and never run again
without being asked for.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from megatron_chimed.errors import ChimedError
from megatron_chimed.workflow.contents import HashCache, hashes_of, is_complete, is_there
from megatron_chimed.workflow.ledger import Ledger, Record
from megatron_chimed.workflow.work import Input, Work

SHOWN = 4  # differences that a line names


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What would become of a step."""

    state: Literal["done", "resume", "run", "blocked"]
    why: str
    is_anew: bool = False
    """Whether what lies at the output's path is moved away first."""
    is_adopted: bool = False
    """Whether the output is complete and only has to be recorded."""
    needs_consent: bool = False
    """Whether it is blocked only because nobody asked for it to run again."""


@dataclass(frozen=True, kw_only=True)
class Consent:
    """What the user allows."""

    accept_changes: bool = False
    """Every step that no longer fits may run again."""
    start: str | None = None
    """This step runs again, and those that read its output may."""


def survey(
    works: Sequence[Work], ledger: Ledger, consent: Consent, cache: HashCache
) -> dict[str, Outlook]:
    """The outlook of every step by name, in order."""
    followers = followers_of(works, consent.start) if consent.start else set()
    outlooks: dict[str, Outlook] = {}
    for work in works:
        name = work.step.name
        record = ledger.records.get(name)
        if name == consent.start and record is not None:
            outlooks[name] = Outlook(state="run", why="again: --from names it", is_anew=True)
            continue
        waits = [step for step in work.needs if outlooks[step].state != "done"]
        allowed = consent.accept_changes or name in followers
        outlook = judge(work, record, cache, waits=waits, is_allowed=allowed)
        stuck = [step for step in waits if outlooks[step].state == "blocked"]
        if stuck and outlook.state != "blocked":
            outlook = Outlook(state="blocked", why=f"reads {' and '.join(stuck)}")
        outlooks[name] = outlook
    return outlooks


def followers_of(works: Sequence[Work], start: str) -> set[str]:
    """A step and all that read its output, directly or not."""
    found = {start}
    for work in works:
        if found.intersection(work.needs):
            found.add(work.step.name)
    return found


def judge(
    work: Work,
    record: Record | None,
    cache: HashCache,
    *,
    waits: Collection[str] = (),
    is_allowed: bool = False,
) -> Outlook:
    """The outlook of one step.

    Args:
        work: The step.
        record: What the ledger says about it.
        cache: Of hashes.
        waits: Earlier steps that will run first; what they make is not known yet.
        is_allowed: Whether it may run again.
    """
    reads = f", reads {' and '.join(waits)}" if waits else ""
    missing = _missing(work, waits, cache)
    if record is None:
        return _judge_new(work, missing, reads)
    if record.is_forced:
        return _judge_missing(missing) or Outlook(
            state="run", why=f"again: {record.again}", is_anew=True
        )
    allowed = is_allowed or record.again is not None
    inputs = input_changes(work, record, cache, waits)
    config = _config_changes(work, record)
    if record.is_finished:
        if not inputs + config:
            inputs = _output_changes(record, work, cache)
        if inputs or config:
            return _consented(inputs + config, missing, allowed, anew=True)
        if waits:
            why = f"again, unless they come out as before: it{reads[1:]}"
            state = "run" if allowed else "blocked"
            return Outlook(state=state, why=why, needs_consent=not allowed)
        return Outlook(state="done", why=_finished(record) + _neutral_changes(work, record))
    if record.output != work.step.output:
        config.append(f"output was {record.output} and is {work.step.output}")
    if inputs + config and not is_there(work.step.kind.makes, work.step.output):
        why = f"left nothing behind; changed since: {_some(inputs + config)}"
        return _judge_missing(missing) or Outlook(state="run", why=why)
    if inputs or config:
        # A tool that goes on by itself refuses what it cannot go on with; but a run that began
        # from other inputs would mix the two.
        return _consented(inputs + config, missing, allowed, anew=bool(inputs))
    return _judge_missing(missing) or _judge_unfinished(work, record, cache, reads)


def input_changes(
    work: Work, record: Record, cache: HashCache, waits: Collection[str] = ()
) -> list[str]:
    """How the inputs differ from those on record; those of steps in `waits` are left out."""
    before = [(item["key"], item["hashes"]) for item in record.inputs]
    if [key for key, _ in before] != [item.key for item in work.inputs]:
        return ["other inputs are named"]
    changes = []
    for item, (_, hashes) in zip(work.inputs, before, strict=True):
        if item.step in waits:
            continue
        try:
            changes += [
                f"{item.key} {item.path}: {part}"
                for part in _differences(hashes, hashes_of(item.content, item.path, cache))
            ]
        except ChimedError as error:
            changes.append(f"{item.key}: {str(error).rstrip('.')}")
    return changes


def _differences(before: dict[str, str], after: dict[str, str]) -> list[str]:
    gone = [f"{name} is gone" for name in before if name not in after]
    new = [f"{name} is new" for name in after if name not in before]
    changed = [f"{name} changed" for name in after if before.get(name, after[name]) != after[name]]
    return changed + new + gone


def _config_changes(work: Work, record: Record) -> list[str]:
    return [text for key, text in _changed_keys(work, record) if not _is_neutral(work, key)]


def _neutral_changes(work: Work, record: Record) -> str:
    texts = [text for key, text in _changed_keys(work, record) if _is_neutral(work, key)]
    return f" ({_some(texts)}, which changes no result)" if texts else ""


def _is_neutral(work: Work, key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in work.step.kind.neutral)


def _changed_keys(work: Work, record: Record) -> list[tuple[str, str]]:
    before, after = record.result_config, work.result_config()
    keys = dict.fromkeys((*before, *after))
    return [
        (key, f"{key} was {_shown(before, key)} and is {_shown(after, key)}")
        for key in keys
        if _shown(before, key) != _shown(after, key)
    ]


def _shown(values: dict[str, Any], key: str) -> str:
    return repr(_as_json(values[key])) if key in values else "not set"


def _as_json(value: Any) -> Any:
    return [_as_json(item) for item in value] if isinstance(value, list | tuple) else value


def _output_changes(record: Record, work: Work, cache: HashCache) -> list[str]:
    try:
        hashes = hashes_of(work.step.kind.makes, work.step.output, cache)
    except ChimedError as error:
        return [f"its output: {str(error).rstrip('.')}"]
    changes = _differences(record.output_hashes, hashes)
    return [f"its output {work.step.output}: {change}" for change in changes]


def _judge_new(work: Work, missing: list[str], reads: str) -> Outlook:
    if is_there(work.step.kind.makes, work.step.output):
        return Outlook(
            state="blocked",
            why=f"{work.step.output} exists, but the ledger does not know it: move it away, or "
            "give the step another `output`",
        )
    return _judge_missing(missing) or Outlook(state="run", why=f"new{reads}")


def _judge_unfinished(work: Work, record: Record, cache: HashCache, reads: str) -> Outlook:
    kind, last = work.step.kind, record.attempts[-1]
    is_killed = last.exit_code is None
    how = "was interrupted" if is_killed else f"ended with exit code {last.exit_code}"
    if kind.is_atomic and is_killed and is_complete(kind.makes, work.step.output, cache):
        return Outlook(
            state="resume", why="its output is complete and only to be recorded", is_adopted=True
        )
    if kind.resumes:
        return Outlook(state="resume", why=how + reads)
    is_anew = is_there(kind.makes, work.step.output)
    return Outlook(state="run", why=how + reads, is_anew=is_anew)


def _consented(changes: list[str], missing: list[str], allowed: bool, *, anew: bool) -> Outlook:
    why = _some(changes)
    if not allowed:
        return Outlook(state="blocked", why=why, needs_consent=True)
    if blocked := _judge_missing(missing):
        return blocked
    if anew:
        return Outlook(state="run", why=f"again: {why}", is_anew=True)
    return Outlook(state="resume", why=f"with changes: {why}")


def _missing(work: Work, waits: Collection[str], cache: HashCache) -> list[str]:
    return [
        f"{item.key}: {problem}"
        for item in work.inputs
        if item.step not in waits and (problem := _problem(item, cache))
    ]


def _problem(item: Input, cache: HashCache) -> str | None:
    try:
        hashes_of(item.content, item.path, cache)
    except ChimedError as error:
        return str(error).rstrip(".")
    return None


def _judge_missing(missing: list[str]) -> Outlook | None:
    return Outlook(state="blocked", why=_some(missing)) if missing else None


def _finished(record: Record) -> str:
    return f"finished {record.attempts[-1].ended}"


def _some(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return "; ".join(texts[:SHOWN]) + more
