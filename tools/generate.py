r"""Answers prompts with a checkpoint, in the chat template that it was trained with.

Examples:
    python tools/generate.py --checkpoint runs/sft --interactive --temperature 0.8
    python tools/generate.py --checkpoint runs/sft --prompt "What helps against a fever?"
    python tools/generate.py --checkpoint runs/sft --prompts prompts.jsonl --output out.jsonl \
        --max-new-tokens 128 --temperature 0
    python tools/launch.py --nproc-per-node 2 tools/generate.py --checkpoint runs/sft \
        --parallel.tensor_parallel_size 2 --prompts prompts.jsonl --output out.jsonl
    python tools/generate.py --checkpoint runs/sft --prompts prompts.jsonl --output out.jsonl \
        --temperature 1 --num-candidates 4 --max-batch 64
    python tools/generate.py --checkpoint runs/pretrain --prompt "Fever is"

Checkpoints of SFT, DPO and rejection sampling hold their template. A base model has none: it
completes text, as with --raw. One line says which of the two is done, and why.

Each input row holds a question under `prompt` (optionally earlier turns under `history`, as
[question, answer], and a `system` prompt), or messages that end with a question under
`conversations`; for text, `prompt` alone. The output has the same rows in the same order with
`completion` and `finish_reason` (`stop` or `length`) added, and appears when all are done. With
--num-candidates N each row appears N times, with `candidate` counting from 0. Where a prompt is
empty, or leaves no room for --max-new-tokens, `completion` is null and `finish_reason` is
`prompt_empty` or `prompt_too_long`; with --too-long cut the prompt is cut, and it is `prompt_cut`.
tools/score.py reads such files.

Each finished completion is written at once to `.O.jsonl.partial-*` beside the output: the same
command, started again after a kill, resumes there. Ranks beyond tensor x pipeline parallel size
form replicas, among which the prompts are divided.

--interactive keeps the turns until /reset; /exit or Ctrl-D leaves, Ctrl-C stops an answer.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_chimed.command_line import (
    CommandParser,
    add_overwrite_flag,
    check_checkpoint,
    check_output,
)
from megatron_chimed.config.inference_flags import (
    add_inference_flags,
    inference_flag,
    parallel_of,
    session_options,
)
from megatron_chimed.config.run_config import settings_called
from megatron_chimed.config.sampling import SamplingConfig
from megatron_chimed.errors import CheckpointError, ConfigError, run_command
from megatron_chimed.files import sha256_file

if TYPE_CHECKING:
    from megatron_chimed.data.formats.example import Conversation
    from megatron_chimed.generation import Session
    from megatron_chimed.tokenizer import Tokenizer

# While the user thinks, the other ranks wait in a collective, which must not time out.
INTERACTIVE_TIMEOUT_SECONDS = 7 * 24 * 3600.0
DEFAULT_TIMEOUT_SECONDS = 600.0


def main(argv: Sequence[str] | None = None) -> int:
    """Checks everything that needs no model, opens the checkpoint, answers."""
    arguments = parse_arguments(argv)
    sampling = sampling_of(arguments)
    if arguments.output is None or not arguments.output.exists():  # else that is reported first
        check_checkpoint(arguments.checkpoint)
    # Only now: these import torch and megatron-core, which takes seconds.
    from megatron_chimed.checkpoint.reader import CheckpointReader, newest_checkpoint
    from megatron_chimed.data.templates import STORED_KEY, load_template, stored_template
    from megatron_chimed.generation import (
        FileJob,
        choose_template,
        complete_file,
        is_unfinished,
        make_prompt_encoder,
        open_session,
        read_rows,
        run_chat,
        stream_answer,
    )

    if arguments.output:
        allowed = arguments.overwrite or is_unfinished(arguments.output)
        check_output("--output", arguments.output, arguments.prompts, overwrite=allowed)
    checkpoint = newest_checkpoint(arguments.checkpoint)
    stored = CheckpointReader(checkpoint).config
    choice = choose_template(
        stored_template(stored.get(STORED_KEY), str(checkpoint)),
        given=load_template(arguments.template) if arguments.template else None,
        raw=arguments.raw,
    )
    is_chat = choice.template is not None
    rows = read_rows(arguments.prompts, is_chat=is_chat) if arguments.prompts else []
    timeout = INTERACTIVE_TIMEOUT_SECONDS if arguments.interactive else DEFAULT_TIMEOUT_SECONDS
    parallel = parallel_of(arguments, timeout_seconds=timeout)
    opened = open_session(checkpoint, parallel, **session_options(arguments))
    with settings_called(inference_flag), opened as session:
        tokenizer = require_tokenizer(session, checkpoint)
        encoder = make_prompt_encoder(tokenizer, choice.template, arguments.add_bos)
        sampling = encoder.with_stops(sampling, session.stop_ids)
        if arguments.interactive:
            run_chat(session, encoder, sampling, hint=f"{checkpoint}: {choice.why}")
            return 0
        if session.ranks.rank == 0:
            print(choice.why, file=sys.stderr, flush=True)
        if arguments.prompt is not None:
            stream_answer(
                session, encoder, sampling, question_of(arguments.prompt, is_chat=is_chat)
            )
            return 0
        assert arguments.output is not None, "without a prompt there is a file"
        job = FileJob(
            output=arguments.output,
            checkpoint=sha256_file(checkpoint / "manifest.json"),
            num_candidates=arguments.num_candidates,
            max_batch=arguments.max_batch,
            too_long=arguments.too_long,
        )
        complete_file(session, encoder, rows, sampling, job)
    return 0


def sampling_of(arguments: argparse.Namespace) -> SamplingConfig:
    """How tokens are drawn.

    Raises:
        ConfigError: A flag is out of range.
    """
    return SamplingConfig(
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        repetition_penalty=arguments.repetition_penalty,
        seed=arguments.seed,
        stop_strings=tuple(arguments.stop),
    )


def question_of(text: str, *, is_chat: bool) -> "Conversation | str":
    """What --prompt asks.

    Raises:
        DataError: A question without content.
    """
    from megatron_chimed.data.formats.prompt import asked_conversation

    return asked_conversation({"prompt": text}) if is_chat else text


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line.

    Raises:
        ConfigError: It is wrong.
    """
    parser = CommandParser(prog="tools/generate.py", description=__doc__)
    parser.add_argument(
        "--checkpoint",
        required=True,
        type=Path,
        metavar="DIR",
        help="a checkpoint, or a run's folder, of which the newest is taken",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--prompts", type=Path, metavar="F.jsonl", help="rows with prompts, see above"
    )
    source.add_argument("--prompt", metavar="TEXT", help="answer one question on the terminal")
    source.add_argument(
        "--interactive", action="store_true", help="talk on the terminal; /reset, /exit"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="O.jsonl",
        help="file to write the completed rows of --prompts to",
    )
    add_overwrite_flag(parser)
    _add_speaking(parser)
    _add_sampling(parser)
    _add_running(parser)
    arguments = parser.parse_args(argv)
    if (arguments.prompts is None) != (arguments.output is None):
        raise ConfigError(
            "--prompts and --output belong together: rows are read from one file, and written "
            "with their completions to another. Give both, or --prompt TEXT, or --interactive."
        )
    return arguments


def _add_speaking(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("prompts")
    group.add_argument(
        "--template",
        metavar="NAME",
        help="chat template, by name or as a YAML file (default: the checkpoint's own)",
    )
    group.add_argument(
        "--raw", action="store_true", help="complete text, without the checkpoint's template"
    )
    group.add_argument(
        "--add-bos",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="prepend the begin-of-sequence token to text that is completed; a template decides "
        "this itself (default: the tokenizer's setting, as in transformers)",
    )
    group.add_argument(
        "--too-long",
        choices=("skip", "cut", "error"),
        default="skip",
        help="what to do with a row of --prompts that leaves no room for --max-new-tokens: skip "
        "it, cut its earliest turns and then the beginning of its question, or fail at once "
        "(default: skip)",
    )


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling")
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
        help="draw from the fewest tokens with a total probability of P; 1 is off (default: 1)",
    )
    group.add_argument(
        "--repetition-penalty",
        type=float,
        default=1.0,
        metavar="R",
        help="above 1, tokens that already occurred become less likely; 1 is off (default: 1)",
    )
    group.add_argument("--seed", type=int, default=0, metavar="S", help="of the draws (default: 0)")
    group.add_argument(
        "--stop",
        nargs="+",
        default=(),
        metavar="STR",
        help="strings before which a completion ends; the end-of-sequence token always ends it",
    )


def _add_running(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("execution")
    group.add_argument(
        "--max-batch",
        type=int,
        default=16,
        metavar="B",
        help="completions that each replica decodes together; a finished one is replaced at once. "
        "Larger is faster and takes more memory, which is printed; results stay (default: 16)",
    )
    group.add_argument(
        "--num-candidates",
        type=int,
        default=1,
        metavar="N",
        help="completions per row of --prompts; the prompt is processed once (default: 1)",
    )
    add_inference_flags(group)


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


if __name__ == "__main__":
    sys.exit(run_command(main))
