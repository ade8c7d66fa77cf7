r"""Looks into token files: are they sound, what do they hold, what will a model see.

Examples:
    python tools/inspect_dataset.py check data/corpus --tokenizer tokenizer.model
    python tools/inspect_dataset.py view data/corpus --document 10 --count 2
    python tools/inspect_dataset.py view data/corpus --seq-length 256 --sample 0 --seed 1234
    python tools/inspect_dataset.py stats data/corpus --plot lengths.png

`check` reads everything: sizes, hashes, token range, document ends, tokenizer. It exits with 65 if
anything is wrong. `view` takes the tokenizer that the data names, unless --tokenizer is given.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from megatron_chimed.data.checking import check_dataset
from megatron_chimed.data.indexed import IndexedDataset
from megatron_chimed.data.pretrain import PretrainDataset
from megatron_chimed.data.statistics import QUANTILES, length_statistics, write_length_histogram
from megatron_chimed.errors import CommandParser, ConfigError, DataError, run_command
from megatron_chimed.tokenizer import Tokenizer, load_tokenizer

TOKEN_STYLES = ("black on bright_cyan", "black on bright_yellow")  # neighbours differ
SPECIAL_STYLE = "bold white on red"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the chosen subcommand."""
    arguments = parse_arguments(argv)
    indexed = IndexedDataset(arguments.prefix)
    console = Console(highlight=False)
    if arguments.subcommand == "check":
        check(indexed, arguments.tokenizer, console)
    elif arguments.subcommand == "stats":
        show_statistics(indexed, arguments.plot, console)
    else:
        tokenizer = tokenizer_of(indexed, arguments.tokenizer)
        if arguments.seq_length is None:
            view_documents(indexed, tokenizer, arguments, console)
        else:
            view_samples(indexed, tokenizer, arguments, console)
    return 0


def check(indexed: IndexedDataset, tokenizer_path: str | None, console: Console) -> None:
    """Prints what was verified.

    Raises:
        DataError: Something does not hold.
    """
    tokenizer = load_tokenizer(tokenizer_path) if tokenizer_path else None
    findings = check_dataset(indexed, tokenizer)
    table = Table(title=indexed.prefix, title_justify="left")
    for header in ("", "what", "found"):
        table.add_column(header, overflow="fold")
    for finding in findings:
        mark = Text("ok", style="green") if finding.is_good else Text("WRONG", style="red")
        table.add_row(mark, finding.what, Text(finding.detail))
    console.print(table)
    wrong = [f"{finding.what}: {finding.detail}" for finding in findings if not finding.is_good]
    if wrong:
        raise DataError(f"{indexed.prefix}: {'; '.join(wrong)}. Preprocess again.")


def show_statistics(indexed: IndexedDataset, plot: str | None, console: Console) -> None:
    """Prints the length table and draws the histogram."""
    table = Table(title=f"tokens per document: {indexed.prefix}", title_justify="left")
    table.add_column("source", overflow="fold")
    names = [f"{quantile:.0%}" for quantile in QUANTILES]
    for header in ("documents", "tokens", "mean", *names):
        table.add_column(header, justify="right")
    for row in length_statistics(indexed):
        numbers = (f"{row.documents:,}", f"{row.tokens:,}", f"{row.mean:.1f}")
        table.add_row(Text(row.name), *numbers, *(f"{value:,}" for value in row.quantiles))
    console.print(table)
    if plot is not None:
        write_length_histogram(indexed, plot)
        console.print(f"wrote {plot}", markup=False)


def view_documents(
    indexed: IndexedDataset, tokenizer: Tokenizer, arguments: argparse.Namespace, console: Console
) -> None:
    """Prints documents token by token.

    Raises:
        ConfigError: There is no such document.
    """
    first, last = arguments.document, arguments.document + arguments.count
    if first < 0 or arguments.count < 1 or last > indexed.num_documents:
        raise ConfigError(
            f"{indexed.prefix} has documents 0 to {indexed.num_documents - 1}; --document {first} "
            f"--count {arguments.count} leaves them."
        )
    for document, length in enumerate(indexed.document_lengths(first, last), start=first):
        start = indexed.document_start(document)
        origin = source_of(indexed, document)
        console.print(Text(f"document {document}: {length} tokens{origin}", style="bold"))
        console.print(colour_tokens(tokenizer, indexed.tokens[start : start + length]))


def view_samples(
    indexed: IndexedDataset, tokenizer: Tokenizer, arguments: argparse.Namespace, console: Console
) -> None:
    """Prints training samples as a run on all documents with that seed would read them."""
    dataset = PretrainDataset(
        indexed,
        documents=(0, indexed.num_documents),
        seq_length=arguments.seq_length,
        seed=arguments.seed,
    )
    if arguments.sample < 0:
        raise ConfigError(f"--sample is {arguments.sample}; samples count from 0.")
    for index in range(arguments.sample, arguments.sample + arguments.count):
        sample = dataset[index]
        title = f"sample {index} of {dataset.samples_per_epoch} per epoch: {dataset.locate(index)}"
        console.print(Text(title, style="bold"))
        console.print(colour_tokens(tokenizer, sample["tokens"]))
        console.print(Text(f"last target: {tokenizer.token(int(sample['labels'][-1]))}"))


def colour_tokens(tokenizer: Tokenizer, ids: Iterable[int]) -> Text:
    """The tokens one after another, each followed by its id."""
    text = Text()
    for place, index in enumerate(map(int, ids)):
        is_special = tokenizer.is_control(index) or index in tokenizer.added_tokens.values()
        style = SPECIAL_STYLE if is_special else TOKEN_STYLES[place % len(TOKEN_STYLES)]
        text.append(tokenizer.token(index), style=style)
        text.append(f" {index} ", style="dim")
    return text


def source_of(indexed: IndexedDataset, document: int) -> str:
    """Where a document comes from, as far as the sidecar tells."""
    sources = indexed.sidecar.sources if indexed.sidecar is not None else ()
    for source in sources:
        if source.documents[0] <= document < source.documents[1]:
            return f", from {source.file}"
    return ""


def tokenizer_of(indexed: IndexedDataset, path: str | None) -> Tokenizer:
    """The tokenizer to show tokens with.

    Raises:
        ConfigError: None is known, or it is not the one that made the data.
    """
    sidecar = indexed.sidecar
    if path is None and (sidecar is None or not Path(sidecar.tokenizer_name).exists()):
        known = "no tokenizer" if sidecar is None else f"{sidecar.tokenizer_name!r}, now gone"
        raise ConfigError(f"{indexed.prefix} names {known}. Give it with --tokenizer PATH.")
    tokenizer = load_tokenizer(path or sidecar.tokenizer_name)
    if sidecar is not None and sidecar.tokenizer_sha256 != tokenizer.identity:
        raise ConfigError(
            f"{path or sidecar.tokenizer_name} (sha256 {tokenizer.identity[:12]}) is not the "
            f"tokenizer of {indexed.prefix} (sha256 {sidecar.tokenizer_sha256[:12]}). Give that "
            "one with --tokenizer PATH."
        )
    return tokenizer


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line.

    Raises:
        ConfigError: It is wrong.
    """
    parser = CommandParser(
        prog="inspect_dataset.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="subcommand", required=True, metavar="check|view|stats")
    for name, help_text in (
        ("check", "read everything and verify it"),
        ("view", "show documents or training samples token by token"),
        ("stats", "count tokens and documents, draw their lengths"),
    ):
        command = commands.add_parser(name, help=help_text)
        command.add_argument("prefix", metavar="PREFIX", help="path without .bin and .idx")
        if name == "stats":
            command.add_argument("--plot", metavar="F", help="length histogram to write, a PNG")
            continue
        command.add_argument(
            "--tokenizer", metavar="PATH", help="tokenizer.model, or a folder that holds one"
        )
        if name == "view":
            _add_view_arguments(command)
    return parser.parse_args(argv)


def _add_view_arguments(command: argparse.ArgumentParser) -> None:
    for flag, default, help_text in (
        ("--document", 0, "first document to show, from 0"),
        ("--count", 1, "how many documents or samples"),
        ("--sample", 0, "with --seq-length: first training sample to show, from 0"),
        ("--seed", 1234, "with --seq-length: seed of the training order"),
    ):
        command.add_argument(
            flag, type=int, default=default, metavar="N", help=f"{help_text} (default: {default})"
        )
    command.add_argument(
        "--seq-length", type=int, metavar="N", help="show training samples of so many tokens"
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
