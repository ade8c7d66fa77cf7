"""Completions of an unfinished job: each is on disk as soon as it has ended.

One file for each replica beside the output, JSON lines: what the job was asked for, then the
completions. A killed job that is started again takes them over and completes the rest; since a
completion does not depend on the others, the output is the same.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_chimed.config.sampling import SamplingConfig
from megatron_chimed.errors import OutputError
from megatron_chimed.generation.complete import (
    completion_of,
    gather_replicas,
    in_order,
    stream_completions,
)
from megatron_chimed.generation.lines import LineFile, read_lines
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
    seen: Callable[[Completion], None] | None = None,
) -> list[Completion]:
    """Completes requests, keeping each completion at once, and goes on from an earlier start.

    Call `remove_partial` once the result is written.

    Args:
        session: The model.
        requests: As for `stream_completions`.
        sampling: How to draw and where to end.
        output: Where the result will go; completions are kept in `.NAME.partial-*` beside it.
        fingerprint: All that the completions depend on, by name; JSON values.
        max_batch: As for `stream_completions`.
        seen: Called with each completion of this replica once it is kept.

    Returns:
        The completions in order of prompt and candidate, on every rank.

    Raises:
        OutputError: The kept completions are of a job with another fingerprint, or damaged.
        ChimedError: As in `stream_completions`.
    """
    ranks = session.ranks
    agreement = ranks.agreement
    kept = _read(output, fingerprint) if agreement.rank == 0 else ()
    found = [completion_of(fields) for fields in agreement.gather_items(kept)]
    done = {(completion.prompt_id, completion.candidate) for completion in found}
    left = [r for r in requests if (r.prompt_id, r.candidate) not in done]
    # Before the file, so that what cannot be completed leaves none.
    completions = stream_completions(session, left, sampling, max_batch=max_batch)
    speaks = ranks.tensor_rank == 0 and ranks.pipeline_rank == 0
    partial = _PartialFile(output, ranks.data_rank, fingerprint) if speaks else None
    own = []
    try:
        for completion in completions:
            if partial:
                partial.add(completion)
            if seen:
                seen(completion)
            own.append(completion)
    finally:
        if partial:
            partial.close()
    return in_order([*found, *gather_replicas(session, own)])


def is_unfinished(output: Path) -> bool:
    """Whether a job kept completions for this output, and so may go on."""
    return bool(_files(output))


def remove_partial(output: Path) -> None:
    """Removes what was kept; every rank calls it, for the files that its host can see."""
    for path in _files(output):
        path.unlink(missing_ok=True)


class _PartialFile(LineFile):
    """The finished completions of one replica."""

    def __init__(self, output: Path, replica: int, fingerprint: Mapping[str, Any]) -> None:
        super().__init__(output.with_name(f"{_prefix(output)}{replica}"), fingerprint)

    def add(self, completion: Completion) -> None:
        """Adds a completion."""
        self.write(asdict(completion))


def _read(output: Path, fingerprint: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The fields of all completions that were kept.

    Raises:
        OutputError: Another job kept them, or they are damaged.
    """
    expected = json.loads(json.dumps(fingerprint))  # as it will be read: tuples become lists
    for path in _files(output):
        lines = read_lines(path)
        first = next(lines, expected)
        other = [name for name in expected if first.get(name) != expected[name]]
        if other:
            raise OutputError(
                f"{path} holds completions of an unfinished job with another "
                f"{' and '.join(other)}. Start that job again to finish it, delete the file, or "
                "name another output."
            )
        yield from lines


def _prefix(output: Path) -> str:
    return f".{output.name}.partial-"


def _files(output: Path) -> list[Path]:
    """The files of all replicas that can be seen from here."""
    if not output.parent.is_dir():
        return []
    return sorted(p for p in output.parent.iterdir() if p.name.startswith(_prefix(output)))
