"""Resumable completion: each finished completion is written to disk at once.

Each replica keeps a JSON lines file beside the output: the job's fingerprint, then the completions.
A killed job that is started again reads them and completes the rest; since completions do not
depend on each other, the output is the same.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_chimed.config.sampling import SamplingConfig
from megatron_chimed.errors import OutputError
from megatron_chimed.generation.completion import (
    completion_of,
    gather_replicas,
    in_order,
    stream_completions,
)
from megatron_chimed.generation.jsonl_journal import JsonlJournal, read_journal
from megatron_chimed.generation.requests import Completion, Request
from megatron_chimed.generation.session import Session


def complete_resumably(
    session: Session,
    requests: Sequence[Request],
    sampling: SamplingConfig,
    *,
    output: Path,
    fingerprint: Mapping[str, Any],
    max_batch: int = 16,
    on_completion: Callable[[Completion], None] | None = None,
) -> list[Completion]:
    """Completes requests, writing each completion to disk at once; a killed job resumes.

    Call `remove_partial` once the result is written.

    Args:
        session: The model.
        requests: As for `stream_completions`.
        sampling: How to draw and where to end.
        output: Where the result will go; completions are kept in `.NAME.partial-*` beside it.
        fingerprint: Everything that the completions depend on, by name; JSON values.
        max_batch: As for `stream_completions`.
        on_completion: Called with each completion of this replica once it is written.

    Returns:
        The completions in order of prompt and candidate, on every rank.

    Raises:
        OutputError: The kept completions have another fingerprint, or are damaged.
        ChimedError: As in `stream_completions`.
    """
    ranks = session.ranks
    agreement = ranks.agreement
    kept = _read(output, fingerprint) if agreement.rank == 0 else ()
    found = [completion_of(fields) for fields in agreement.gather_items(kept)]
    done = {(completion.prompt_id, completion.candidate) for completion in found}
    left = [r for r in requests if (r.prompt_id, r.candidate) not in done]
    # Before the file is opened, so that invalid requests leave no file.
    completions = stream_completions(session, left, sampling, max_batch=max_batch)
    is_writer = ranks.tensor_rank == 0 and ranks.pipeline_rank == 0
    partial = PartialCompletions(output, ranks.data_rank, fingerprint) if is_writer else None
    own = []
    try:
        for completion in completions:
            if partial:
                partial.add(completion)
            if on_completion:
                on_completion(completion)
            own.append(completion)
    finally:
        if partial:
            partial.close()
    return in_order([*found, *gather_replicas(session, own)])


def is_unfinished(output: Path) -> bool:
    """Whether an unfinished job left completions for this output, so that it can resume."""
    return bool(_files(output))


def remove_partial(output: Path) -> None:
    """Removes the kept completions; every rank calls it, for the files that its host can see."""
    for path in _files(output):
        path.unlink(missing_ok=True)


class PartialCompletions(JsonlJournal):
    """The finished completions of one replica."""

    def __init__(self, output: Path, replica: int, fingerprint: Mapping[str, Any]) -> None:
        super().__init__(output.with_name(f"{_prefix(output)}{replica}"), fingerprint)

    def add(self, completion: Completion) -> None:
        """Appends a completion."""
        self.write(asdict(completion))


def _read(output: Path, fingerprint: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The fields of all kept completions.

    Raises:
        OutputError: Another job wrote them, or they are damaged.
    """
    expected = json.loads(json.dumps(fingerprint))  # as it is read back: tuples become lists
    for path in _files(output):
        lines = read_journal(path)
        first = next(lines, expected)
        other = [name for name in expected if first.get(name) != expected[name]]
        if other:
            raise OutputError(
                f"{path} holds completions of an unfinished job with another "
                f"{' and '.join(other)}. Start that job again to finish it, delete the file, or "
                "choose another output."
            )
        yield from lines


def _prefix(output: Path) -> str:
    return f".{output.name}.partial-"


def _files(output: Path) -> list[Path]:
    """The files of all replicas that can be on_completion from here."""
    if not output.parent.is_dir():
        return []
    return sorted(p for p in output.parent.iterdir() if p.name.startswith(_prefix(output)))
