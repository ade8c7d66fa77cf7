r"""Scores answers with a reward model, on one process or on many.

    python tools/score.py --checkpoint runs/reward --input answers.jsonl --output scored.jsonl
    python tools/launch.py --nproc-per-node 2 tools/score.py --checkpoint runs/reward \
        --parallel.tensor_parallel_size 2 --input answers.jsonl --output scored.jsonl

Each input row holds a question under `prompt` (optionally earlier turns under `history`, as
[question, answer], and a `system` prompt), or messages under `conversations`, and the answer under
`completion`. The output has the same rows in the same order with `score` added, and appears when
all are done; an existing file is only replaced with --overwrite. A row whose prompt
tools/generate.py skipped (`completion` is null) or cut has a `score` of null. Scores compare
answers to one prompt; their zero has no meaning. Ranks beyond tensor x pipeline parallel size form
replicas, among which the rows are divided.
"""

import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from megatron_chimed.command_line import (
    CommandParser,
    add_overwrite_flag,
    check_checkpoint,
    check_output,
    positive,
)
from megatron_chimed.config.inference_flags import (
    add_inference_flags,
    inference_flag,
    parallel_of,
    session_options,
)
from megatron_chimed.config.run_config import settings_called
from megatron_chimed.errors import run_command
from megatron_chimed.files import sha256_file


def main(argv: Sequence[str] | None = None) -> int:
    """Checks everything that needs no model, opens the checkpoint, scores."""
    return run_command(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    arguments = _parser().parse_args(argv)
    check_output("--output", arguments.output, arguments.input, overwrite=arguments.overwrite)
    check_checkpoint(arguments.checkpoint)
    # Only now: these import torch and megatron-core, which takes seconds.
    from megatron_chimed.data.templates import load_template
    from megatron_chimed.generation import (
        open_session,
        read_answers,
        require_template,
        score_conversations,
        write_scores,
    )

    given = load_template(arguments.template) if arguments.template else None
    rows, conversations = read_answers(arguments.input)
    opened = open_session(
        arguments.checkpoint, parallel_of(arguments), head="score", **session_options(arguments)
    )
    with settings_called(inference_flag), opened as session:
        template = require_template(session, given)
        session.ranks.agreement.require_same(
            {
                "--input": f"sha256 {sha256_file(arguments.input)}",
                "--template": template.identity,
                "--batch-tokens": arguments.batch_tokens,
            }
        )
        started = time.monotonic()
        scores = score_conversations(
            session, conversations, template, batch_tokens=arguments.batch_tokens
        )
        seconds = time.monotonic() - started
        agreement = session.ranks.agreement
        agreement.on_rank_0(lambda: write_scores(arguments.output, rows, scores))
        found = [score for score in scores if score is not None]
        if agreement.rank == 0:
            print(
                f"{len(found):,} of {len(scores):,} rows scored in {seconds:.1f} s on "
                f"{session.ranks.layout.describe()}, template {template.name}: mean "
                f"{statistics.fmean(found):.4f}, lowest {min(found):.4f}, highest "
                f"{max(found):.4f}; written to {arguments.output}",
                file=sys.stderr,
                flush=True,
            )
    return 0


def _parser() -> CommandParser:
    parser = CommandParser(prog="tools/score.py", description=__doc__)
    parser.add_argument(
        "--checkpoint",
        required=True,
        type=Path,
        metavar="DIR",
        help="a reward model: a checkpoint, or a run's folder, of which the newest is taken",
    )
    parser.add_argument(
        "--input", required=True, type=Path, metavar="F.jsonl", help="rows to score"
    )
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="O.jsonl",
        help="file to write the scored rows to",
    )
    add_overwrite_flag(parser)
    parser.add_argument(
        "--template",
        metavar="NAME",
        help="chat template of the training, only for checkpoints that do not store it",
    )
    parser.add_argument(
        "--batch-tokens",
        type=positive,
        default=8192,
        metavar="N",
        help="tokens per forward pass in each replica; changes scores by rounding only (default: "
        "%(default)s)",
    )
    add_inference_flags(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
