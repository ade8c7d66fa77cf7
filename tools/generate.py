r"""Completes prompts with a checkpoint, on one process or on many.

Examples:
    python tools/generate.py --checkpoint runs/demo --prompts prompts.jsonl --output out.jsonl \
        --max-new-tokens 128 --temperature 0
    torchrun --nproc-per-node 2 tools/generate.py --checkpoint runs/demo --tensor-parallel-size 2 \
        --prompts prompts.jsonl --output out.jsonl --temperature 0.8 --top-p 0.9 --seed 1
    python tools/generate.py --checkpoint runs/demo --prompts prompts.jsonl --output out.jsonl \
        --temperature 1 --num-candidates 4 --max-batch 64
    python tools/generate.py --checkpoint runs/demo --prompt "Fever is"
    python tools/generate.py --checkpoint runs/demo --interactive --temperature 0.8

Each row of the input holds `prompt`; the output holds the same rows in the same order with
`completion` and `finish_reason` (`stop` or `length`) added, and appears when all are done. With
--num-candidates each row comes as often, its `candidate` numbered from 0. A finished completion is
kept at once in `.O.jsonl.partial-*` beside the output: the same command, started again after a
kill, goes on from there. Ranks beyond tensor x pipeline parallel size make replicas, which share
out the prompts.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_chimed.errors import (
    CheckpointError,
    CommandParser,
    ConfigError,
    DataError,
    add_model_flags,
    check_output,
    model_flag,
    run_command,
)
from megatron_chimed.files import sha256_file

if TYPE_CHECKING:
    from megatron_chimed.generation import SamplingConfig, Session
    from megatron_chimed.tokenizer import Tokenizer

# While a person thinks, the other ranks wait in a collective, whose timeout must not end the talk.
INTERACTIVE_TIMEOUT_SECONDS = 7 * 24 * 3600.0
DEFAULT_TIMEOUT_SECONDS = 600.0


def main(argv: Sequence[str] | None = None) -> int:
    """Checks everything that needs no model, opens the checkpoint, completes."""
    arguments = parse_arguments(argv)
    if arguments.output:
        check_output("--output", arguments.output)
    # Only now: these import torch and megatron-core, which takes seconds.
    from megatron_chimed.checkpoint.reader import newest_checkpoint
    from megatron_chimed.config import settings_called
    from megatron_chimed.engine import ParallelConfig
    from megatron_chimed.generation import SamplingConfig, open_session, read_rows

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
    arguments.checkpoint = newest_checkpoint(arguments.checkpoint)
    opened = open_session(arguments.checkpoint, parallel, precision=arguments.precision)
    with settings_called(model_flag), opened as session:
        tokenizer = require_tokenizer(session, arguments.checkpoint)
        sampling = dataclasses.replace(sampling, stop_token_ids=session.stop_ids)
        encode = make_encoder(tokenizer, arguments.add_bos)
        if arguments.interactive:
            talk(session, sampling, encode)
        elif arguments.prompt is not None:
            stream_completion(session, sampling, encode(arguments.prompt))
        else:
            complete_file(session, sampling, rows, arguments)
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
        "--max-batch",
        type=int,
        default=16,
        metavar="B",
        help="completions that run together in each replica: a finished one is replaced at once. "
        "More is faster and takes more memory, which is printed; changes no result (default: 16)",
    )
    group.add_argument(
        "--num-candidates",
        type=int,
        default=1,
        metavar="N",
        help="completions of each row of --prompts, which share the work on the prompt (default: "
        "1)",
    )
    add_model_flags(group)


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


def complete_file(
    session: "Session",
    sampling: "SamplingConfig",
    rows: Sequence[Mapping[str, Any]],
    arguments: argparse.Namespace,
) -> None:
    """Completes the rows of --prompts into --output, going on from where a killed start was."""
    from megatron_chimed.checkpoint.control import Control
    from megatron_chimed.generation import (
        complete_resumably,
        describe_job,
        make_requests,
        remove_partial,
        show_progress,
        summary,
        write_rows,
    )

    encode = make_encoder(session.tokenizer, arguments.add_bos)
    requests = make_requests(
        [encode(row["prompt"]) for row in rows], num_candidates=arguments.num_candidates
    )
    ids = json.dumps([request.prompt for request in requests]).encode()
    fingerprint = {
        "prompts": hashlib.sha256(ids).hexdigest(),
        "sampling": dataclasses.asdict(sampling),
        "precision": str(session.settings.params_dtype),
        "checkpoint": sha256_file(arguments.checkpoint / "manifest.json"),
    }
    speaks = session.ranks.rank == 0
    if speaks:
        print(describe_job(session, requests, sampling, arguments.max_batch), file=sys.stderr)
    started = time.monotonic()
    with show_progress(session, requests) if speaks else contextlib.nullcontext() as seen:
        completions = complete_resumably(
            session,
            requests,
            sampling,
            output=arguments.output,
            fingerprint=fingerprint,
            max_batch=arguments.max_batch,
            seen=seen,
        )
    Control(session.ranks.control_group).on_first(
        lambda: write_rows(arguments.output, rows, completions)
    )
    remove_partial(arguments.output)
    if speaks:
        print(summary(completions, time.monotonic() - started), file=sys.stderr, flush=True)


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
