"""Completes a file of prompts into another, going on from where a killed start was."""

import contextlib
import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_chimed.config.sampling import SamplingConfig
from megatron_chimed.generation.complete import in_order
from megatron_chimed.generation.display import describe_job, show_progress, summary
from megatron_chimed.generation.fitting import (
    TooLong,
    describe_unfit,
    fit_prompts,
    make_requests_of,
)
from megatron_chimed.generation.framing import Framing
from megatron_chimed.generation.partial import complete_resumably, remove_partial
from megatron_chimed.generation.requests import Request, longest_prompt
from megatron_chimed.generation.rows import PromptRow, write_rows
from megatron_chimed.generation.session import Session


@dataclass(frozen=True, kw_only=True)
class FileJob:
    """What a file of prompts is completed with, besides the model and how tokens are drawn."""

    output: Path
    """Where the completed rows go."""

    checkpoint: str
    """Identity of the weights: completions that were kept belong to them."""

    num_candidates: int = 1
    """Completions of each row."""

    max_batch: int = 16
    """Completions that run together; changes no result."""

    too_long: TooLong = "skip"
    """What is done with prompts that leave no room."""


def complete_file(
    session: Session,
    framing: Framing,
    rows: Sequence[PromptRow],
    sampling: SamplingConfig,
    job: FileJob,
) -> None:
    """Completes rows into a file; every rank calls it with the same arguments.

    Raises:
        ChimedError: As of `fit_prompts` and `complete_resumably`.
    """
    fitted = fit_prompts(framing, rows, longest_prompt(session, sampling), job.too_long)
    requests, skipped = make_requests_of(
        fitted, job.num_candidates, starts_text=framing.template is not None
    )
    speaks = session.ranks.rank == 0
    if speaks:
        for line in describe_unfit(rows, fitted):
            print(line, file=sys.stderr)
        print(describe_job(session, requests, sampling, job.max_batch), file=sys.stderr, flush=True)
    started = time.monotonic()
    with show_progress(session, requests) if speaks else contextlib.nullcontext() as seen:
        completions = complete_resumably(
            session,
            requests,
            sampling,
            output=job.output,
            fingerprint=_fingerprint(session, framing, requests, sampling, job),
            max_batch=job.max_batch,
            seen=seen,
        )
    cut = {place for place, prompt in enumerate(fitted) if prompt.is_cut}
    session.ranks.agreement.on_rank_0(
        lambda: write_rows(
            job.output, [row.row for row in rows], in_order([*completions, *skipped]), cut
        )
    )
    remove_partial(job.output)
    if speaks:
        told = summary([*completions, *skipped], time.monotonic() - started, num_cut=len(cut))
        print(f"{told}; written to {job.output}", file=sys.stderr, flush=True)


def _fingerprint(
    session: Session,
    framing: Framing,
    requests: Sequence[Request],
    sampling: SamplingConfig,
    job: FileJob,
) -> dict[str, object]:
    """All that the completions depend on, by names that a user knows."""
    ids = json.dumps([[request.prompt_id, request.prompt] for request in requests]).encode()
    return {
        "prompts": hashlib.sha256(ids).hexdigest(),
        "sampling": dataclasses.asdict(sampling),
        "precision": str(session.settings.params_dtype),
        "checkpoint": job.checkpoint,
        "template": None if framing.template is None else framing.template.identity,
        "--too-long": job.too_long,
    }
