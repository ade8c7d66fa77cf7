r"""Completes prompts with a checkpoint, on one process or on many.

Examples:
    python tools/generate.py --checkpoint runs/demo --prompts prompts.jsonl --output out.jsonl \
        --max-new-tokens 128 --temperature 0
    torchrun --nproc-per-node 2 tools/generate.py --checkpoint runs/demo --tensor-parallel-size 2 \
        --prompts prompts.jsonl --output out.jsonl --temperature 0.8 --top-p 0.9 --seed 1
    python tools/generate.py --checkpoint runs/demo --prompt "Fever is"
    python tools/generate.py --checkpoint runs/demo --interactive --temperature 0.8

Each row of the input holds `prompt`; the output holds the same rows in the same order with
`completion` and `finish_reason` (`stop` or `length`) added, and appears when all are done. Ranks
beyond tensor x pipeline parallel size make replicas, which share out the prompts.
"""

import argparse
import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from megatron_chimed.errors import (
    CheckpointError,
    CommandParser,
    ConfigError,
    DataError,
    OutputError,
    run_command,
)

if TYPE_CHECKING:
    from megatron_chimed.generation import Completion, Listener, SamplingConfig, Session
    from megatron_chimed.tokenizer import Tokenizer

PLAIN_SECONDS = 10.0  # between progress lines where there is no terminal
# While a person thinks, the other ranks wait in a collective, whose timeout must not end the talk.
INTERACTIVE_TIMEOUT_SECONDS = 7 * 24 * 3600.0
DEFAULT_TIMEOUT_SECONDS = 600.0


def main(argv: Sequence[str] | None = None) -> int:
    """Checks everything that needs no model, opens the checkpoint, completes."""
    arguments = parse_arguments(argv)
    if arguments.output:
        check_output(arguments.output)
    # Only now: these import torch and megatron-core, which takes seconds.
    from megatron_chimed.engine import ParallelConfig
    from megatron_chimed.generation import SamplingConfig, open_session, read_rows, write_rows

    rows = read_rows(arguments.prompts) if arguments.prompts else []
    sampling = SamplingConfig(
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        repetition_penalty=arguments.repetition_penalty,
        seed=arguments.seed,
        stop_strings=tuple(arguments.stop),
    )
    parallel = ParallelConfig(
        tensor_parallel_size=arguments.tensor_parallel_size,
        pipeline_parallel_size=arguments.pipeline_parallel_size,
        timeout_seconds=(
            INTERACTIVE_TIMEOUT_SECONDS if arguments.interactive else DEFAULT_TIMEOUT_SECONDS
        ),
    )
    with open_session(arguments.checkpoint, parallel, precision=arguments.precision) as session:
        tokenizer = require_tokenizer(session, arguments.checkpoint)
        sampling = dataclasses.replace(sampling, stop_token_ids=(tokenizer.eos_id,))
        encode = make_encoder(tokenizer, arguments.add_bos)
        if arguments.interactive:
            talk(session, sampling, encode)
        elif arguments.prompt is not None:
            stream_completion(session, sampling, encode(arguments.prompt))
        else:
            prompts = [encode(row["prompt"]) for row in rows]
            completions = complete(session, sampling, prompts, arguments.batch_size)
            if session.ranks.rank == 0:
                write_rows(arguments.output, rows, completions)
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line.

    Raises:
        ConfigError: It is wrong.
    """
    parser = CommandParser(
        prog="generate.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        type=Path,
        metavar="DIR",
        help="a committed checkpoint, or a run's folder, of which the newest is taken",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--prompts", type=Path, metavar="F.jsonl", help="rows with the text under `prompt`"
    )
    source.add_argument("--prompt", metavar="TEXT", help="complete one prompt on the terminal")
    source.add_argument(
        "--interactive", action="store_true", help="read prompts from the terminal; `exit`, `clear`"
    )
    parser.add_argument(
        "--output", type=Path, metavar="O.jsonl", help="where the rows of --prompts go, completed"
    )
    _add_sampling(parser)
    _add_running(parser)
    arguments = parser.parse_args(argv)
    if (arguments.prompts is None) != (arguments.output is None):
        raise ConfigError(
            "--prompts and --output belong together: rows are read from one file and written, "
            "completed, to another. Give both, or --prompt TEXT, or --interactive."
        )
    if arguments.prompts and arguments.prompts.resolve() == arguments.output.resolve():
        raise ConfigError(
            f"--prompts and --output are both {arguments.output}: the prompts would be replaced. "
            "Name another output."
        )
    return arguments


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how tokens are drawn")
    group.add_argument(
        "--max-new-tokens",
        type=int,
        default=256,
        metavar="N",
        help="longest completion in tokens (default: 256)",
    )
    group.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="0 takes the most likely token, higher is more random (default: 0)",
    )
    group.add_argument(
        "--top-k",
        type=int,
        default=0,
        metavar="K",
        help="draw from the K most likely tokens; 0 is off (default: 0)",
    )
    group.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="draw from the fewest tokens that reach probability P; 1 is off (default: 1)",
    )
    group.add_argument(
        "--repetition-penalty",
        type=float,
        default=1.0,
        metavar="R",
        help="above 1, tokens seen before become less likely; 1 is off (default: 1)",
    )
    group.add_argument(
        "--seed", type=int, default=0, metavar="S", help="same seed, same completions (default: 0)"
    )
    group.add_argument(
        "--stop",
        nargs="+",
        default=(),
        metavar="STR",
        help="texts before which a completion ends; the end of sequence always ends it",
    )


def _add_running(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how it runs")
    group.add_argument(
        "--add-bos",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="put the begin of sequence before each prompt (default: what the tokenizer says, as "
        "transformers does; give what the model was trained with)",
    )
    group.add_argument(
        "--batch-size",
        type=int,
        default=16,
        metavar="B",
        help="prompts decoded together in each replica; changes no result (default: 16)",
    )
    for name in ("tensor", "pipeline"):
        group.add_argument(
            f"--{name}-parallel-size",
            type=int,
            default=1,
            metavar="N",
            help=f"{name}-parallel ranks, whatever the training had (default: 1)",
        )
    group.add_argument(
        "--precision",
        choices=("fp32", "bf16", "fp16"),
        help="of weights and activations (default: that of the stored weights)",
    )


def check_output(path: Path) -> None:
    """Finds out before the work whether its result can be written.

    Raises:
        OutputError: It cannot.
    """
    if path.is_dir():
        raise OutputError(f"--output {path} is a folder. Name a file in it.")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise OutputError(f"--output: {parent} cannot be written to. Name another folder.")


def require_tokenizer(session: "Session", checkpoint: Path) -> "Tokenizer":
    """The tokenizer of the checkpoint.

    Raises:
        CheckpointError: It was saved without one.
    """
    if session.tokenizer is None:
        raise CheckpointError(
            f"{checkpoint} was saved without its tokenizer, so prompts cannot be encoded. Convert "
            "or save it again with its tokenizer."
        )
    return session.tokenizer


def make_encoder(tokenizer: "Tokenizer", add_bos: bool | None) -> Callable[[str], list[int]]:
    """How a prompt's text becomes ids.

    Raises:
        ConfigError: A begin of sequence is asked for and the tokenizer has none.
    """
    if add_bos is None:
        add_bos = tokenizer.special.add_bos
    if not add_bos:
        return tokenizer.encode
    bos_id = tokenizer.bos_id
    if bos_id is None:
        raise ConfigError(
            "--add-bos: this tokenizer has no begin of sequence. Leave the flag out, or give "
            "--no-add-bos."
        )
    return lambda text: [bos_id, *tokenizer.encode(text)]


def complete(
    session: "Session", sampling: "SamplingConfig", prompts: list[list[int]], batch_size: int
) -> "list[Completion]":
    """Completes all prompts; rank 0 shows progress and a summary."""
    from megatron_chimed.generation import generate

    if session.ranks.rank != 0:
        return generate(session, prompts, sampling, batch_size=batch_size)
    print(describe(session, sampling, prompts, batch_size), file=sys.stderr, flush=True)
    started = time.monotonic()
    own = -(-len(prompts) // session.ranks.layout.data_parallel_size)
    with show_progress(own) as listener:
        completions = generate(session, prompts, sampling, batch_size=batch_size, listener=listener)
    seconds = time.monotonic() - started
    num_tokens = sum(len(completion.token_ids) for completion in completions)
    stopped = sum(completion.finish_reason == "stop" for completion in completions)
    print(
        f"{len(completions):,} completions ({stopped:,} came to an end, "
        f"{len(completions) - stopped:,} were cut at {sampling.max_new_tokens} tokens), "
        f"{num_tokens:,} tokens in {seconds:.1f} s ({num_tokens / seconds:,.0f} tokens/s)",
        file=sys.stderr,
        flush=True,
    )
    return completions


def describe(
    session: "Session", sampling: "SamplingConfig", prompts: list[list[int]], batch_size: int
) -> str:
    """What runs where, and what its keys and values take."""
    from megatron_chimed.generation import cache_bytes

    layout = session.ranks.layout
    longest = max(map(len, prompts)) + sampling.max_new_tokens
    size = cache_bytes(
        session.config,
        num_layers=len(session.layers),
        batch_size=min(batch_size, len(prompts)),
        max_length=longest,
        tensor_parallel_size=layout.tensor_parallel_size,
        dtype=session.settings.params_dtype,
    )
    return (
        f"{len(prompts):,} prompts on {layout.describe()}, batches of {batch_size}, at most "
        f"{longest} tokens a row, KV cache at most {size / 2**20:,.1f} MiB a rank"
    )


@contextlib.contextmanager
def show_progress(num_prompts: int) -> "Iterator[Listener]":
    """Yields what shows progress: a live line on a terminal, else a plain one now and then."""
    started = shown = time.monotonic()
    done = tokens = 0
    display = Progress(
        TextColumn("prompts"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )
    task = display.add_task("", total=num_prompts, speed="")

    def listener(number: int, text: str, finish_reason: str | None) -> None:
        nonlocal shown, done, tokens
        tokens += 1
        done += finish_reason is not None
        now = time.monotonic()
        speed = f"{tokens / max(now - started, 1e-9):,.0f} tokens/s"
        display.update(task, completed=done, speed=speed)
        if display.disable and now - shown >= PLAIN_SECONDS:
            shown = now
            print(f"{done} of {num_prompts} prompts, {speed}", file=sys.stderr, flush=True)

    with display:
        yield listener


def stream_completion(session: "Session", sampling: "SamplingConfig", prompt: list[int]) -> str:
    """Completes one prompt; rank 0 prints it while it comes."""
    from megatron_chimed.generation import generate

    def listener(number: int, text: str, finish_reason: str | None) -> None:
        print(text, end="", flush=True)

    speaks = session.ranks.rank == 0
    (completion,) = generate(session, [prompt], sampling, listener=listener if speaks else None)
    if speaks:
        print(flush=True)
    return completion.text


def talk(
    session: "Session", sampling: "SamplingConfig", encode: Callable[[str], list[int]]
) -> None:
    """Reads lines on rank 0 until `exit`; each goes on from all that was said since `clear`."""
    from megatron_chimed.checkpoint.control import Control

    control = Control(session.ranks.control_group)
    history = ""
    while True:
        line = control.on_first(read_line)
        if line is None or line.strip() == "exit":
            return
        if line.strip() == "clear":
            history = ""
            continue
        if not line.strip():
            continue
        try:
            text = stream_completion(session, sampling, encode(history + line))
        except DataError as error:  # the same on every rank, and no reason to end the talk
            if session.ranks.rank == 0:
                print(f"{error} (`clear` forgets what was said.)", file=sys.stderr, flush=True)
            continue
        history += f"{line}{text}\n"


def read_line() -> str | None:
    """The next line from the terminal, or None at its end."""
    try:
        return input("> " if sys.stdin.isatty() else "")
    except EOFError:
        return None


if __name__ == "__main__":
    sys.exit(run_command(main))
