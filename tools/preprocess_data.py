r"""Turns text files into token files for training: P.bin, P.idx and P.meta.json.

Examples:
    python tools/preprocess_data.py --input corpus.jsonl --tokenizer tokenizer.model \
        --output-prefix data/corpus --workers 8
    python tools/preprocess_data.py --input a.txt b.jsonl --tokenizer ziya_folder \
        --output-prefix data/mixed --text-key content --max-bad-rate 0.001

Input is JSON lines with the text under one key, or plain text with one document per line. The same
input gives the same bytes for any number of workers. Malformed rows are an error that names file,
line and byte, or, with --max-bad-rate, are listed in P.quarantine.jsonl.
"""

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Display

from megatron_chimed.data.formats.registry import AUTO, FORMATS
from megatron_chimed.data.preprocess import STAGES, PreprocessConfig, Progress, preprocess
from megatron_chimed.data.sidecar import Sidecar
from megatron_chimed.errors import CommandParser, run_command

PLAIN_SECONDS = 10.0  # between lines where there is no terminal


def main(argv: Sequence[str] | None = None) -> int:
    """Preprocesses and prints a summary."""
    config = parse_arguments(argv)
    started = time.monotonic()
    with show_progress(started) as show:
        sidecar = preprocess(config, show)
    print(summarize(config, sidecar, time.monotonic() - started))
    return 0


def parse_arguments(argv: Sequence[str] | None) -> PreprocessConfig:
    """Reads the command line.

    Raises:
        ConfigError: It is wrong.
    """
    parser = CommandParser(
        prog="preprocess_data.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--input", nargs="+", required=True, metavar="FILE", help="corpus files, in order"
    )
    parser.add_argument(
        "--tokenizer",
        required=True,
        metavar="PATH",
        help="a tokenizer.model file, or a Hugging Face folder that holds one",
    )
    parser.add_argument(
        "--output-prefix", required=True, metavar="P", help="output path without .bin and .idx"
    )
    parser.add_argument(
        "--format",
        default=AUTO,
        help=f"{', '.join(FORMATS)}, or {AUTO} to look into each file (default: {AUTO})",
    )
    parser.add_argument(
        "--stage", default=STAGES[0], help=f"what the tokens are for: {', '.join(STAGES)}"
    )
    parser.add_argument(
        "--text-key", default="text", metavar="KEY", help="key of the text in a row (default: text)"
    )
    parser.add_argument(
        "--append-eod",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="end each document with the tokenizer's end of sequence (default: yes)",
    )
    parser.add_argument(
        "--max-bad-rate",
        type=float,
        default=0.0,
        metavar="R",
        help="share of rows that may be malformed, 0 to 1 (default: 0, the first is an error)",
    )
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="processes that encode (default: 1)"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace existing output when the new is complete"
    )
    arguments = vars(parser.parse_args(argv))
    return PreprocessConfig(inputs=tuple(arguments.pop("input")), **arguments)


@contextlib.contextmanager
def show_progress(started: float) -> Iterator[Callable[[Progress], None]]:
    """Yields what shows progress: a live line on a terminal, else a plain one now and then.

    Args:
        started: When the run began, by `time.monotonic`.
    """
    if not sys.stderr.isatty():
        yield _plain_progress(started)
        return
    display = Display(
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    task = display.add_task("", total=None, speed="")

    def show(progress: Progress) -> None:
        speed = f"{progress.tokens / (time.monotonic() - started):,.0f} tokens/s"
        display.update(task, total=progress.total_bytes, completed=progress.bytes, speed=speed)

    with display:
        yield show


def _plain_progress(started: float) -> Callable[[Progress], None]:
    shown = started

    def show(progress: Progress) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown < PLAIN_SECONDS:
            return
        shown = now
        print(
            f"{progress.bytes / 1e6:,.0f} of {progress.total_bytes / 1e6:,.0f} MB, "
            f"{progress.bytes / 1e6 / (now - started):.1f} MB/s, "
            f"{progress.tokens / (now - started):,.0f} tokens/s",
            file=sys.stderr,
            flush=True,
        )

    return show


def summarize(config: PreprocessConfig, sidecar: Sidecar, seconds: float) -> str:
    """What was written, for people."""
    megabytes = sum(source.bytes for source in sidecar.sources) / 1e6
    empty = sum(source.empty for source in sidecar.sources)
    bad = sum(source.quarantined for source in sidecar.sources)
    lines = [
        f"{sidecar.documents:,} documents, {sidecar.tokens:,} tokens from {megabytes:,.2f} MB in "
        f"{seconds:.1f} s ({megabytes / seconds:.1f} MB/s, {sidecar.tokens / seconds:,.0f} "
        f"tokens/s); {empty} rows were empty, {bad} malformed",
        f"wrote {config.output_prefix}.bin, .idx and .meta.json ({sidecar.dtype} ids)",
    ]
    if bad:
        lines.append(f"the malformed rows are listed in {config.output_prefix}.quarantine.jsonl")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run_command(main))
