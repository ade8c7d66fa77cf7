r"""Inspects token files: verifies them, shows documents and training samples, counts, compares.

Examples:
    python tools/inspect_dataset.py check data/corpus
    python tools/inspect_dataset.py view data/sft --document 10 --count 2 --style text
    python tools/inspect_dataset.py view data/sft --seq-length 4096 --sample 0 --seed 1234
    python tools/inspect_dataset.py stats data/sft --seq-length 4096 --plots pictures
    python tools/inspect_dataset.py diff data/before data/after

A prefix is a path without .bin and .idx, of pretraining data, conversations or rankings, or of a
stock Megatron file. `check` reads everything, reports all faults and exits with 65 if it finds any.
`view` shows documents as stored or, with --seq-length, training samples exactly as a run with the
same seed, split and options reads them. A 1 in the mask column means that the target, the next
token, is learned; colors show the same. `diff` exits with 1 if it finds a difference. The tokenizer
is the one recorded with the data, unless --tokenizer is given.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from megatron_chimed.command_line import (
    CommandParser,
    add_overwrite_flag,
    check_output,
    positive,
)
from megatron_chimed.data.datasets.config import DataConfig
from megatron_chimed.data.datasets.prefix import Prefix, open_prefix
from megatron_chimed.data.datasets.split import PARTS
from megatron_chimed.data.inspection import print_tables
from megatron_chimed.data.inspection.plots import plot_lengths, plot_sources
from megatron_chimed.data.inspection.print_views import LAYOUTS, print_view, tokenizer_of
from megatron_chimed.data.inspection.statistics import open_samples
from megatron_chimed.data.inspection.token_views import View, view_document, view_sample
from megatron_chimed.data.inspection.verification import verify_prefix
from megatron_chimed.errors import ConfigError, DataError, reworded, run_command
from megatron_chimed.observe.console import make_console
from megatron_chimed.tokenizer import Tokenizer

DEFAULT_SEED = 1234
PLOTS = ("lengths.png", "sources.png")
# What changes samples as the field `data.<name>` of a run does.
RUN_OPTIONS = (
    "split",
    "overlong",
    "reset_position_ids",
    "reset_attention_at_eod",
    "eod_mask_loss",
)
SAMPLE_OPTIONS = ("sample", "seed", "part", *RUN_OPTIONS)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the chosen subcommand."""
    arguments = parse_arguments(argv)
    return arguments.run(arguments, make_console())


def check(arguments: argparse.Namespace, console: Console) -> int:
    """Prints what was verified.

    Raises:
        DataError: Something is wrong.
    """
    findings = verify_prefix(arguments.prefix, arguments.tokenizer)
    print_tables.print_findings(arguments.prefix, findings, console)
    wrong = [f"{item.what}: {item.detail}" for item in findings if item.verdict == "WRONG"]
    if wrong:
        raise DataError(f"{arguments.prefix}: {len(wrong)} wrong: {'; '.join(wrong)}")
    return 0


def view(arguments: argparse.Namespace, console: Console) -> int:
    """Prints documents or training samples token by token."""
    prefix = open_prefix(arguments.prefix)
    tokenizer = tokenizer_of(prefix.name, prefix.indexed.sidecar, arguments.tokenizer)
    if arguments.seq_length is None:
        views = _documents(prefix, arguments)
    else:
        views = _samples(prefix, tokenizer, arguments, console)
    for shown in views:
        print_view(shown, tokenizer, console, layout=arguments.style)
    return 0


def _documents(prefix: Prefix, arguments: argparse.Namespace) -> Iterator[View]:
    for name in SAMPLE_OPTIONS:
        if getattr(arguments, name) is not None:
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag} is for training samples: give --seq-length too.")
    first = arguments.document or 0
    last, documents = first + arguments.count, prefix.indexed.num_documents
    if first < 0 or last > documents:
        raise ConfigError(
            f"{prefix.name} has documents 0 to {documents - 1}; --document {first} --count "
            f"{arguments.count} goes beyond them."
        )
    return (view_document(prefix, number) for number in range(first, last))


def _samples(
    prefix: Prefix, tokenizer: Tokenizer, arguments: argparse.Namespace, console: Console
) -> Iterator[View]:
    first = arguments.sample or 0
    if arguments.document is not None:
        raise ConfigError("--document is not for training samples: give --sample instead.")
    if first < 0:
        raise ConfigError(f"--sample is {first}; samples count from 0.")
    given = {name: getattr(arguments, name) for name in RUN_OPTIONS}
    given = {name: value for name, value in given.items() if value is not None}
    flags = {f"data.{name}": f"--{name.replace('_', '-')}" for name in ("seq_length", *RUN_OPTIONS)}
    with reworded(flags):
        datasets = open_samples(
            DataConfig(train=prefix.name, seq_length=arguments.seq_length, **given),
            prefix,
            seed=DEFAULT_SEED if arguments.seed is None else arguments.seed,
            tokenizer=tokenizer,
        )
    part = arguments.part or PARTS[0]
    dataset = getattr(datasets, part)
    if dataset is None:
        raise ConfigError(f"--part {part} has no documents. Give the run's --split.")
    for note in datasets.notes:
        console.print(f"note: {note}", markup=False)
    return (view_sample(dataset, number) for number in range(first, first + arguments.count))


def stats(arguments: argparse.Namespace, console: Console) -> int:
    """Prints the tables and draws the plots."""
    folder = None if arguments.plots is None else Path(arguments.plots)
    if folder is not None:
        for name in PLOTS:
            check_output("--plots", folder / name, overwrite=arguments.overwrite)
    prefix = open_prefix(arguments.prefix)
    print_tables.print_lengths(prefix, console)
    print_tables.print_sources(prefix, console)
    if arguments.seq_length is not None:
        print_tables.print_fill(prefix, arguments.seq_length, console)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        lengths, sources = PLOTS
        plot_lengths(prefix, folder / lengths, seq_length=arguments.seq_length)
        plot_sources(prefix, folder / sources)
        console.print(f"wrote {lengths} and {sources} in {folder}", markup=False)
    return 0


def diff(arguments: argparse.Namespace, console: Console) -> int:
    """Prints the differences.

    Returns:
        0 if there are none, 1 if there are some.
    """
    left, right = open_prefix(arguments.prefix), open_prefix(arguments.other)
    return int(print_tables.print_difference(left, right, arguments.tokenizer, console))


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line.

    Raises:
        ConfigError: It is wrong.
    """
    parser = CommandParser(prog="tools/inspect_dataset.py", description=__doc__)
    commands = parser.add_subparsers(
        dest="subcommand", required=True, metavar="check|view|stats|diff"
    )
    for run, help_text in (
        (check, "read everything and verify it"),
        (view, "show documents or training samples token by token"),
        (stats, "count and measure, draw plots"),
        (diff, "show how two prefixes differ"),
    ):
        command = commands.add_parser(run.__name__, help=help_text)
        command.set_defaults(run=run)
        command.add_argument("prefix", metavar="PREFIX", help="path without .bin and .idx")
        if run is diff:
            command.add_argument("other", metavar="OTHER", help="the prefix to compare it with")
        if run is not stats:
            command.add_argument(
                "--tokenizer",
                metavar="PATH",
                help="tokenizer.model, tokenizer.json or a folder with one (default: the data's)",
            )
        if run in (view, stats):
            command.add_argument(
                "--seq-length",
                type=positive,
                metavar="N",
                help="tokens of a training sample",
            )
        if run is stats:
            command.add_argument(
                "--plots", metavar="DIR", help="folder for lengths.png and sources.png"
            )
            add_overwrite_flag(command)
        if run is view:
            _add_view_arguments(command)
    return parser.parse_args(argv)


def _add_view_arguments(command: argparse.ArgumentParser) -> None:
    for flag, default, help_text in (
        ("--document", 0, "first document to show, from 0"),
        ("--sample", 0, "with --seq-length: first training sample to show, from 0"),
        ("--seed", DEFAULT_SEED, "with --seq-length: training.seed of the run"),
    ):
        command.add_argument(flag, type=int, metavar="N", help=f"{help_text} (default: {default})")
    command.add_argument(
        "--count", type=positive, default=1, metavar="N", help="how many to show (default: 1)"
    )
    command.add_argument(
        "--style",
        choices=LAYOUTS,
        default=LAYOUTS[0],
        help="a line per token, or decoded text in which learned tokens are marked (default: "
        f"{LAYOUTS[0]})",
    )
    run = command.add_argument_group("with --seq-length, the data settings of the run")
    run.add_argument("--split", metavar="W,W,W", help='such as "969,30,1" (default: none)')
    run.add_argument("--part", choices=PARTS, help=f"of the split (default: {PARTS[0]})")
    run.add_argument(
        "--overlong",
        choices=("error", "drop", "truncate"),
        help="how longer conversations are handled (default: error)",
    )
    for name in RUN_OPTIONS[2:]:
        flag = f"--{name.replace('_', '-')}"
        run.add_argument(
            flag, action="store_const", const=True, help=f"pretraining: as data.{name}"
        )


if __name__ == "__main__":
    sys.exit(run_command(main))
