"""Decides which steps have to run again, and why; changes nothing.

A step is done when it has finished and neither its inputs, nor its configuration, nor its output
have changed since. A finished step that is stale is neither used nor run again unless the user asks
for it.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from megatron_chimed.errors import ChimedError
from megatron_chimed.workflow.artifacts import HashCache, Hashes, exists, hash_artifact, is_complete
from megatron_chimed.workflow.ledger import Ledger, Record
from megatron_chimed.workflow.preparation import PreparedStep, StepInput

MAX_SHOWN = 4  # differences named in one line


@dataclass(frozen=True, kw_only=True)
class Staleness:
    """Whether a step has to run, and why."""

    state: Literal["done", "resume", "run", "blocked"]
    reason: str
    replaces_output: bool = False
    """Whether what is at the output's path is moved aside first."""
    only_record: bool = False
    """Whether the output is complete and only the ledger's entry is missing."""
    needs_permission: bool = False
    """Whether it is blocked only until the user asks for it to run again."""


@dataclass(frozen=True, kw_only=True)
class RerunPolicy:
    """Which finished steps the user allows to run again."""

    accept_changes: bool = False
    """Every stale step may run again."""
    from_step: str | None = None
    """This step runs again, and steps that depend on it may."""


def assess_steps(
    steps: Sequence[PreparedStep], ledger: Ledger, policy: RerunPolicy, cache: HashCache
) -> dict[str, Staleness]:
    """The staleness of every step by name, in order."""
    dependents = dependents_of(steps, policy.from_step) if policy.from_step else set()
    assessments: dict[str, Staleness] = {}
    for step in steps:
        name = step.declared.name
        record = ledger.records.get(name)
        if name == policy.from_step and record is not None:
            assessments[name] = Staleness(
                state="run", reason="again: --from names it", replaces_output=True
            )
            continue
        pending = [name for name in step.dependencies if assessments[name].state != "done"]
        allowed = policy.accept_changes or name in dependents
        assessment = assess(step, record, cache, pending=pending, is_allowed=allowed)
        stuck = [name for name in pending if assessments[name].state == "blocked"]
        if stuck and assessment.state != "blocked":
            assessment = Staleness(state="blocked", reason=f"reads {' and '.join(stuck)}")
        assessments[name] = assessment
    return assessments


def dependents_of(steps: Sequence[PreparedStep], start: str) -> set[str]:
    """A step and all steps that read its output, directly or not."""
    found = {start}
    for step in steps:
        if found.intersection(step.dependencies):
            found.add(step.declared.name)
    return found


def assess(
    step: PreparedStep,
    record: Record | None,
    cache: HashCache,
    *,
    pending: Collection[str] = (),
    is_allowed: bool = False,
) -> Staleness:
    """The staleness of one step.

    Args:
        step: The step.
        record: Its entry in the ledger, if any.
        cache: Cached hashes of files.
        pending: Earlier steps that will run first; their outputs are not known yet.
        is_allowed: Whether it may run again.
    """
    reads = f", reads {' and '.join(pending)}" if pending else ""
    missing = _missing(step, pending, cache)
    if record is None:
        return _assess_new(step, missing, reads)
    if record.is_forced:
        return _blocked_by_missing(missing) or Staleness(
            state="run", reason=f"again: {record.again}", replaces_output=True
        )
    allowed = is_allowed or record.again is not None
    inputs = input_changes(step, record, cache, pending)
    config = _config_changes(step, record)
    if record.output_hashes is not None:
        if not inputs + config:
            inputs = _output_changes(record.output_hashes, step, cache)
        if inputs or config:
            return _assess_changed(inputs + config, missing, allowed, replaces_output=True)
        if pending:
            reason = f"again, unless their outputs are the same as before: it{reads[1:]}"
            state = "run" if allowed else "blocked"
            return Staleness(state=state, reason=reason, needs_permission=not allowed)
        return Staleness(state="done", reason=_finished(record) + _neutral_changes(step, record))
    if record.output != step.declared.output:
        config.append(f"output was {record.output} and is {step.declared.output}")
    if inputs + config and not exists(step.declared.kind.output_type, step.declared.output):
        reason = f"left nothing behind; changed since: {_some(inputs + config)}"
        return _blocked_by_missing(missing) or Staleness(state="run", reason=reason)
    if inputs or config:
        # A tool that resumes by itself checks its own settings; but a run that was started from
        # other inputs would mix the two.
        return _assess_changed(inputs + config, missing, allowed, replaces_output=bool(inputs))
    return _blocked_by_missing(missing) or _assess_unfinished(step, record, cache, reads)


def input_changes(
    step: PreparedStep, record: Record, cache: HashCache, pending: Collection[str] = ()
) -> list[str]:
    """How the inputs differ from the recorded ones, without outputs of `pending` steps."""
    before = [(item["key"], item["hashes"]) for item in record.inputs]
    if [key for key, _ in before] != [item.key for item in step.inputs]:
        return ["other inputs are named"]
    changes = []
    for item, (_, hashes) in zip(step.inputs, before, strict=True):
        if item.producer in pending:
            continue
        try:
            changes += [
                f"{item.key} {item.path}: {part}"
                for part in _differences(hashes, hash_artifact(item.type, item.path, cache))
            ]
        except ChimedError as error:
            changes.append(f"{item.key}: {str(error).rstrip('.')}")
    return changes


def _differences(before: Hashes, after: Hashes) -> list[str]:
    gone = [f"{name} is gone" for name in before if name not in after]
    new = [f"{name} is new" for name in after if name not in before]
    changed = [f"{name} changed" for name in after if before.get(name, after[name]) != after[name]]
    return changed + new + gone


def _config_changes(step: PreparedStep, record: Record) -> list[str]:
    return [text for key, text in _changed_keys(step, record) if not _is_neutral(step, key)]


def _neutral_changes(step: PreparedStep, record: Record) -> str:
    texts = [text for key, text in _changed_keys(step, record) if _is_neutral(step, key)]
    return f" ({_some(texts)}, which changes no result)" if texts else ""


def _is_neutral(step: PreparedStep, key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in step.declared.kind.neutral)


def _changed_keys(step: PreparedStep, record: Record) -> list[tuple[str, str]]:
    """Settings that differ, with both values.

    A record of an earlier version lacks settings that were added since; their defaults do what
    that version did.
    """
    recorded, after = record.result_config, step.result_config()
    added = {key: value for key, value in step.defaults().items() if key in after}
    before = added | recorded
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


def _output_changes(before: Hashes, step: PreparedStep, cache: HashCache) -> list[str]:
    try:
        hashes = hash_artifact(step.declared.kind.output_type, step.declared.output, cache)
    except ChimedError as error:
        return [f"its output: {str(error).rstrip('.')}"]
    changes = _differences(before, hashes)
    return [f"its output {step.declared.output}: {change}" for change in changes]


def _assess_new(step: PreparedStep, missing: list[str], reads: str) -> Staleness:
    if exists(step.declared.kind.output_type, step.declared.output):
        return Staleness(
            state="blocked",
            reason=f"{step.declared.output} exists, but the ledger has no entry for it: move it "
            "away, or give the step another `output`",
        )
    return _blocked_by_missing(missing) or Staleness(state="run", reason=f"new{reads}")


def _assess_unfinished(
    step: PreparedStep, record: Record, cache: HashCache, reads: str
) -> Staleness:
    kind, last = step.declared.kind, record.attempts[-1]
    is_killed = last.exit_code is None
    how = "was interrupted" if is_killed else f"ended with exit code {last.exit_code}"
    if kind.is_atomic and is_killed and is_complete(kind.output_type, step.declared.output, cache):
        return Staleness(
            state="resume",
            reason="its output is complete and only has to be recorded",
            only_record=True,
        )
    if kind.resumes:
        return Staleness(state="resume", reason=how + reads)
    replaces_output = exists(kind.output_type, step.declared.output)
    return Staleness(state="run", reason=how + reads, replaces_output=replaces_output)


def _assess_changed(
    changes: list[str], missing: list[str], allowed: bool, *, replaces_output: bool
) -> Staleness:
    reason = _some(changes)
    if not allowed:
        return Staleness(state="blocked", reason=reason, needs_permission=True)
    if blocked := _blocked_by_missing(missing):
        return blocked
    if replaces_output:
        return Staleness(state="run", reason=f"again: {reason}", replaces_output=True)
    return Staleness(state="resume", reason=f"with changes: {reason}")


def _missing(step: PreparedStep, pending: Collection[str], cache: HashCache) -> list[str]:
    return [
        f"{item.key}: {problem}"
        for item in step.inputs
        if item.producer not in pending and (problem := _problem(item, cache))
    ]


def _problem(item: StepInput, cache: HashCache) -> str | None:
    try:
        hash_artifact(item.type, item.path, cache)
    except ChimedError as error:
        return str(error).rstrip(".")
    return None


def _blocked_by_missing(missing: list[str]) -> Staleness | None:
    return Staleness(state="blocked", reason=_some(missing)) if missing else None


def _finished(record: Record) -> str:
    return f"finished {record.attempts[-1].ended}"


def _some(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - MAX_SHOWN} more" if len(texts) > MAX_SHOWN else ""
    return "; ".join(texts[:MAX_SHOWN]) + more
