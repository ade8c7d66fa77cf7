"""Console output of a job of completions: its size, its progress, its result."""

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from megatron_chimed.config.sampling import SamplingConfig
from megatron_chimed.generation.cache_memory import cache_bytes, plan_cache
from megatron_chimed.generation.requests import Completion, Request
from megatron_chimed.generation.session import Session

PLAIN_SECONDS = 10.0  # between progress lines if stderr is not a terminal

CompletionCallback: TypeAlias = Callable[[Completion], None]


def describe_job(
    session: Session, requests: Sequence[Request], sampling: SamplingConfig, max_batch: int
) -> str:
    """One line: number of completions, layout and size of the KV cache."""
    layout = session.ranks.layout
    plan = plan_cache(
        requests,
        sampling.max_new_tokens,
        max_batch,
        on_cpu=session.ranks.device.type == "cpu",
    )
    size = cache_bytes(
        session.config,
        num_layers=len(session.layers),
        max_batch=plan.num_pages,
        max_length=plan.page_tokens,
        tensor_parallel_size=layout.tensor_parallel_size,
        dtype=session.settings.params_dtype,
    )
    return (
        f"{len(requests):,} completions on {layout.describe()}, {max_batch} at a time, at most "
        f"{plan.longest} tokens with the prompt, KV cache {size / 2**20:,.1f} MiB a rank"
    )


@contextlib.contextmanager
def show_progress(session: Session, requests: Sequence[Request]) -> Iterator[CompletionCallback]:
    """Yields a progress callback: it updates a live line on a terminal, or prints plain lines."""
    total = -(-len(requests) // session.ranks.layout.data_parallel_size)
    started = shown = time.monotonic()
    done = tokens = 0
    display = Progress(
        TextColumn("completions"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )
    task = display.add_task("", total=total, speed="")

    def on_completion(completion: Completion) -> None:
        nonlocal shown, done, tokens
        tokens += len(completion.token_ids)
        done += 1
        now = time.monotonic()
        speed = f"{tokens / max(now - started, 1e-9):,.0f} tokens/s"
        display.update(task, completed=done, speed=speed)
        if display.disable and now - shown >= PLAIN_SECONDS:
            shown = now
            print(f"{done} of {total} completions, {speed}", file=sys.stderr, flush=True)

    with display:
        yield on_completion


def summary(completions: Sequence[Completion], seconds: float, *, num_cut: int = 0) -> str:
    """One line: completions, skipped prompts, tokens and seconds."""
    num_tokens = sum(len(completion.token_ids) for completion in completions)
    reasons = Counter(completion.finish_reason for completion in completions)
    skipped = {
        "prompt_too_long": "skipped: the prompt is too long",
        "prompt_empty": "skipped: the prompt is empty",
    }
    made = len(completions) - sum(reasons[reason] for reason in skipped)
    notes = [f"{reasons[reason]:,} {what}" for reason, what in skipped.items() if reasons[reason]]
    notes += [f"{num_cut:,} prompts were cut"] if num_cut else []
    return (
        f"{made:,} completions ({reasons['stop']:,} ended by themselves, {reasons['length']:,} "
        f"reached max_new_tokens), {num_tokens:,} tokens, {seconds:.1f} s"
        + "".join(f"; {note}" for note in notes)
    )
