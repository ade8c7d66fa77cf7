"""Completes a file of prompts into an output file; a killed job resumes."""

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
from megatron_chimed.generation.completion import in_order
from megatron_chimed.generation.display import describe_job, show_progress, summary
from megatron_chimed.generation.prompt_encoder import PromptEncoder
from megatron_chimed.generation.prompt_fitting import (
    TooLong,
    describe_unfit,
    fit_prompts,
    make_requests_of,
)
from megatron_chimed.generation.prompt_rows import PromptRow, write_rows
from megatron_chimed.generation.requests import Request, longest_prompt
from megatron_chimed.generation.resumable import complete_resumably, remove_partial
from megatron_chimed.generation.session import Session
from megatron_chimed.yaml_files import flatten


@dataclass(frozen=True, kw_only=True)
class FileJob:
    """Settings of a job that completes a file, besides the model and the sampling."""

    output: Path
    """The output file."""

    checkpoint: str
    """Identity of the weights, to which kept completions belong."""

    num_candidates: int = 1
    """Number of completions of each row."""

    max_batch: int = 16
    """Number of completions that run together; does not change results."""

    too_long: TooLong = "skip"
    """What to do with prompts that leave no room for a completion."""


def complete_file(
    session: Session,
    encoder: PromptEncoder,
    rows: Sequence[PromptRow],
    sampling: SamplingConfig,
    job: FileJob,
) -> None:
    """Completes rows into a file; every rank calls it with the same arguments.

    Raises:
        ChimedError: As of `fit_prompts` and `complete_resumably`.
        ConfigError: The ranks were given other prompts or settings.
    """
    fitted = fit_prompts(encoder, rows, longest_prompt(session, sampling), job.too_long)
    requests, skipped = make_requests_of(
        fitted, job.num_candidates, starts_text=encoder.template is not None
    )
    fingerprint = _fingerprint(session, encoder, requests, sampling, job)
    session.ranks.agreement.require_same(flatten(fingerprint) | {"--output": str(job.output)})
    is_rank_0 = session.ranks.rank == 0
    if is_rank_0:
        for line in describe_unfit(rows, fitted):
            print(line, file=sys.stderr)
        print(describe_job(session, requests, sampling, job.max_batch), file=sys.stderr, flush=True)
    started = time.monotonic()
    with show_progress(session, requests) if is_rank_0 else contextlib.nullcontext() as progress:
        completions = complete_resumably(
            session,
            requests,
            sampling,
            output=job.output,
            fingerprint=fingerprint,
            max_batch=job.max_batch,
            on_completion=progress,
        )
    cut = {index for index, prompt in enumerate(fitted) if prompt.is_cut}
    session.ranks.agreement.on_rank_0(
        lambda: write_rows(
            job.output, [row.row for row in rows], in_order([*completions, *skipped]), cut
        )
    )
    remove_partial(job.output)
    if is_rank_0:
        result = summary([*completions, *skipped], time.monotonic() - started, num_cut=len(cut))
        print(f"{result}; written to {job.output}", file=sys.stderr, flush=True)


def _fingerprint(
    session: Session,
    encoder: PromptEncoder,
    requests: Sequence[Request],
    sampling: SamplingConfig,
    job: FileJob,
) -> dict[str, object]:
    """Everything that the completions depend on, by names that a user knows."""
    ids = json.dumps([[request.prompt_id, request.prompt] for request in requests]).encode()
    return {
        "prompts": hashlib.sha256(ids).hexdigest(),
        "sampling": dataclasses.asdict(sampling),
        "precision": str(session.settings.params_dtype),
        "checkpoint": job.checkpoint,
        "template": None if encoder.template is None else encoder.template.identity,
        "--too-long": job.too_long,
    }
