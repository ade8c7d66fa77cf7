r"""Turns text into token files for training: P.bin, P.idx, P.meta.json and what the stage adds.

Examples:
    python tools/preprocess_data.py --input corpus.jsonl --tokenizer tokenizer.model \
        --output-prefix data/corpus --workers 8
    python tools/preprocess_data.py --input books/ 'web/*.jsonl.zst' --tokenizer ziya_folder \
        --output-prefix data/mixed --text-key content --max-bad-rate 0.001 --normalize
    python tools/preprocess_data.py --stage sft --template ziya --input dialogues.json \
        --tokenizer ziya_folder --output-prefix data/sft --seq-length 4096
    python tools/preprocess_data.py --stage preference --template ziya --input pairs.jsonl \
        --tokenizer ziya_folder --output-prefix data/pairs --seq-length 4096

Stages:
    pretrain    texts; a conversation becomes its texts, one per line, without any template
    sft         conversations, with P.mask.bin and .idx that say which tokens are learned
    preference  rankings of answers: P.ranked.bin and .idx with masks, and P.rank.json

Inputs are files, folders and quoted patterns: .jsonl .json .txt .csv .tsv .parquet, plain or .gz or
.zst. The format is detected from the rows. The same input gives the same bytes for any number of
workers. A run that was interrupted or killed resumes when the same command is given again.
Malformed rows are an error that counts them and names the first by file, line and byte, or, with
--max-bad-rate, are listed in P.quarantine.jsonl. Exit codes: 0 everything is written, 65 bad data,
73 the output cannot be written, 75 a worker was killed, 78 wrong flags.

Memory is 65 MB with one worker; with several, 70 MB plus 40 MB per worker, for input of any size. A
row of more than 4 MiB is encoded on its own in the main process, which then needs extra memory: the
larger of its bytes plus its text (1 byte per character in ASCII, 2 in Chinese, 4 with emoji) and
its text plus its ids (2 bytes each, 4 for a vocabulary of 65,500 and more), so 125 MB for 60 MiB of
JSON with Chinese or ASCII text. Rows of that size need more in the chat stages (about five times
their bytes), in tables and with cleaning (further copies of the text), and with a tokenizer that
C++ does not encode (100 bytes per id). Lower --max-row-bytes if that is too much.
"""

import argparse
import contextlib
import ctypes
import dataclasses
import datetime
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from megatron_chimed.command_line import CommandParser, add_overwrite_flag
from megatron_chimed.data.cleaning.config import DEDUPLICATE_CHOICES, CleaningConfig
from megatron_chimed.data.preprocessing.flags import add_bad_row_flags, add_reading_flags
from megatron_chimed.data.preprocessing.plan import PreprocessConfig
from megatron_chimed.data.preprocessing.preprocess import PreprocessProgress, preprocess
from megatron_chimed.data.preprocessing.stage_encoder import KEEP_LABELS
from megatron_chimed.data.preprocessing.summary import summarize
from megatron_chimed.data.preprocessing.worker_pool import LARGE_BYTES
from megatron_chimed.data.preprocessing.writer import STAGES
from megatron_chimed.data.templates.encoding import TRUNCATIONS
from megatron_chimed.data.templates.named import ALL_TEMPLATES
from megatron_chimed.data.templates.template import TARGETS
from megatron_chimed.errors import run_command

M_MMAP_THRESHOLD = -3  # of malloc.h
PLAIN_SECONDS = 10.0  # between lines where there is no terminal


def main(argv: Sequence[str] | None = None) -> int:
    """Preprocesses and prints a summary."""
    config = parse_arguments(argv)
    give_back_large_memory()
    started = time.monotonic()
    with show_progress() as show:
        sidecar = preprocess(config, show, _say)
    print(summarize(config, sidecar, time.monotonic() - started))
    return 0


def give_back_large_memory() -> None:
    """Makes glibc return large freed blocks at once, instead of caching up to 64 MB of them."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other libraries have none
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)


def parse_arguments(argv: Sequence[str] | None) -> PreprocessConfig:
    """Reads the command line.

    Raises:
        ConfigError: It is wrong.
    """
    parser = CommandParser(prog="tools/preprocess_data.py", description=__doc__)
    _add_files(parser.add_argument_group("files"))
    _add_stage(parser.add_argument_group("stage"))
    _add_cleaning(parser.add_argument_group("cleaning (off by default; each change is counted)"))
    _add_test_files(parser.add_argument_group("test questions in the data"))
    _add_running(parser.add_argument_group("running"))
    arguments = vars(parser.parse_args(argv))
    for name in ("columns", "ignore_keys", "decontaminate"):
        arguments[name] = tuple(arguments[name])
    names = {item.name for item in dataclasses.fields(CleaningConfig)} - {"encoding"}
    own = {name: arguments.pop(name) for name in names}
    cleaning = CleaningConfig(**own, encoding=arguments["encoding"])
    inputs = tuple(arguments.pop("input"))
    return PreprocessConfig(inputs=inputs, cleaning=cleaning, **arguments)


def _add_files(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--input",
        nargs="+",
        required=True,
        metavar="FILE",
        help="files, folders and quoted patterns, in order",
    )
    group.add_argument(
        "--tokenizer",
        required=True,
        metavar="PATH",
        help="a tokenizer.model or tokenizer.json, or a Hugging Face folder that holds one",
    )
    group.add_argument(
        "--output-prefix", required=True, metavar="P", help="output path without .bin and .idx"
    )
    add_reading_flags(group)
    group.add_argument(
        "--drop-reasoning",
        action="store_true",
        help="leave out reasoning before an answer, for templates that have no part for it",
    )
    add_overwrite_flag(group)


def _add_stage(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--stage",
        default=STAGES[0],
        help=f"training stage of the tokens: {', '.join(STAGES)} (default: {STAGES[0]})",
    )
    group.add_argument(
        "--append-eod",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="pretrain: end each document with the end-of-sequence token (default: yes)",
    )
    group.add_argument(
        "--keep-blank-texts",
        action="store_true",
        help="pretrain: keep texts of white space alone, as Megatron-LM does (default: left out "
        "and counted)",
    )
    group.add_argument(
        "--template",
        metavar="NAME",
        help=f"sft, preference: {', '.join(ALL_TEMPLATES)}, or a YAML file (default: that of the "
        "tokenizer's family)",
    )
    group.add_argument(
        "--targets",
        default=TARGETS[0],
        help=f"sft: what is learned: {', '.join(TARGETS)} (default: {TARGETS[0]})",
    )
    group.add_argument(
        "--keep-labels",
        metavar="LABEL",
        help=f"pretrain, sft: learn answers judged so, leave out others: {', '.join(KEEP_LABELS)} "
        "(default: judged answers are malformed rows; preference takes all)",
    )
    group.add_argument(
        "--seq-length",
        type=int,
        metavar="N",
        help="sft: longest conversation in tokens; later turns that do not fit are left out. "
        "preference: the limit for all answers to a prompt together, each with its prompt. Set it "
        "to --data.seq_length of the training (default: no limit)",
    )
    group.add_argument(
        "--truncation",
        default=TRUNCATIONS[0],
        help="how answers that do not fit are handled (sft: the first answer): "
        f"{', '.join(TRUNCATIONS)} (default: {TRUNCATIONS[0]})",
    )


def _add_cleaning(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--normalize",
        action="store_true",
        help="Unicode NFC, half-width letters and digits, no control or invisible characters; "
        "units, signs and doses stay",
    )
    group.add_argument(
        "--deidentify",
        action="store_true",
        help="replace numbers of documents, records and telephones, accounts, addresses, dates of "
        "birth, labelled names",
    )
    group.add_argument(
        "--deduplicate",
        default=CleaningConfig.deduplicate,
        metavar="HOW",
        help=f"drop examples seen before: {', '.join(DEDUPLICATE_CHOICES)} (default: off)",
    )
    group.add_argument(
        "--near-threshold",
        type=float,
        default=CleaningConfig.near_threshold,
        metavar="S",
        help="similarity of near-duplicates, 0.5 to 0.9 "
        f"(default: {CleaningConfig.near_threshold})",
    )
    group.add_argument(
        "--dedup-memory-mb",
        type=int,
        default=CleaningConfig.dedup_memory_mb,
        metavar="N",
        help="limit in MiB for the index of examples seen; more is an error "
        f"(default: {CleaningConfig.dedup_memory_mb})",
    )


def _add_test_files(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--decontaminate",
        nargs="+",
        default=(),
        metavar="FILE",
        help="test files whose questions are searched for in the data and reported",
    )
    group.add_argument(
        "--remove-contaminated",
        action="store_true",
        help="drop the examples that contain a test question",
    )
    group.add_argument(
        "--ngram-size",
        type=int,
        default=CleaningConfig.ngram_size,
        metavar="N",
        help="Chinese characters, words and numbers in the n-grams that are compared "
        f"(default: {CleaningConfig.ngram_size})",
    )
    group.add_argument(
        "--ngram-overlap",
        type=float,
        default=CleaningConfig.ngram_overlap,
        metavar="R",
        help="share of a question, alone or with its choices, that counts as a match, 0 to 1 "
        f"(default: {CleaningConfig.ngram_overlap})",
    )
    group.add_argument(
        "--max-contaminated",
        type=float,
        default=CleaningConfig.max_contaminated,
        metavar="R",
        help="share of a test file's questions that may stay in the data, 0 to 1; more is an error "
        f"(default: {CleaningConfig.max_contaminated})",
    )


def _add_running(group: argparse._ArgumentGroup) -> None:
    add_bad_row_flags(group)
    group.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="encoding processes (default: 1); several take 70 MB, and 40 MB each. One reads about "
        "75 MB/s of JSON lines with a BPE tokenizer; on two cores a second one gains nothing",
    )


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


@contextlib.contextmanager
def show_progress() -> Iterator[Callable[[PreprocessProgress], None]]:
    """Yields a function that shows progress: a live line on a terminal, else occasional lines."""
    if not sys.stderr.isatty():
        yield _plain_progress()
        return
    from rich.console import Console  # workers that import this module do without
    from rich.progress import BarColumn, DownloadColumn, TextColumn
    from rich.progress import Progress as Display

    display = Display(
        BarColumn(),
        DownloadColumn(),
        TextColumn("{task.fields[speed]}"),
        console=Console(stderr=True),
        transient=True,
    )
    task = display.add_task("", total=None, speed="")
    speed = Speed()

    def show(progress: PreprocessProgress) -> None:
        text = speed.describe(progress)
        display.update(task, total=progress.total_bytes, completed=progress.bytes, speed=text)

    with display:
        yield show


def _plain_progress() -> Callable[[PreprocessProgress], None]:
    speed = Speed()
    shown = time.monotonic()

    def show(progress: PreprocessProgress) -> None:
        nonlocal shown
        text = speed.describe(progress)
        now = time.monotonic()
        if now - shown < PLAIN_SECONDS:
            return
        shown = now
        done = f"{progress.bytes / 1e6:,.0f} of {progress.total_bytes / 1e6:,.0f} MB"
        print(f"{done}, {text}", file=sys.stderr, flush=True)

    return show


class Speed:
    """Speeds since the first progress report, so that what a resumed run skips does not count."""

    def __init__(self) -> None:
        self._first: PreprocessProgress | None = None
        self._started = 0.0

    def describe(self, progress: PreprocessProgress) -> str:
        """Megabytes and tokens per second, and the time that is left."""
        now = time.monotonic()
        if self._first is None:
            self._first, self._started = progress, now
        seconds = max(now - self._started, 1e-9)
        done = progress.bytes - self._first.bytes
        tokens = progress.tokens - self._first.tokens
        left = (progress.total_bytes - progress.bytes) * seconds / done if done else 0
        text = f"{done / 1e6 / seconds:.1f} MB/s, {tokens / seconds:,.0f} tokens/s"
        return f"{text}, {datetime.timedelta(seconds=round(left))} left"


if __name__ == "__main__":
    sys.exit(run_command(main))
