"""Shows what is in a checkpoint, and verifies it.

    python tools/inspect_checkpoint.py runs/demo/checkpoints/iter_0000100
    python tools/inspect_checkpoint.py runs/demo --verify
    python tools/inspect_checkpoint.py runs/demo --tensors

Of a folder of checkpoints the newest is shown. Without `--verify`, JSON files are checked by their
hashes and the others by their sizes; with it, every byte is read. Exit code 74 if damaged.
"""

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from megatron_chimed.command_line import CommandParser, check_checkpoint
from megatron_chimed.errors import run_command
from megatron_chimed.observe.console import make_console, print_table

if TYPE_CHECKING:
    from megatron_chimed.checkpoint.reader import CheckpointReader

KINDS = ("exp_avg", "exp_avg_sq", "master")
NUMBERS = {"tensors", "elements", "bytes", "shards"}


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the tables; exit code 0 only if nothing is damaged."""
    return run_command(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    arguments = _parser().parse_args(argv)
    check_checkpoint(arguments.checkpoint)
    from megatron_chimed.checkpoint.reader import CheckpointReader, newest_checkpoint

    reader = CheckpointReader(newest_checkpoint(arguments.checkpoint))
    console = make_console()
    tables = [_summary(reader), _kinds(reader), _files(reader)]
    for table in [*tables, *([_tensors(reader)] if arguments.tensors else [])]:
        print_table(table, console)
    if arguments.verify:
        reader.verify()
        console.print(f"{len(reader.manifest.files)} files verified, every byte as it was saved")
    return 0


def _summary(reader: "CheckpointReader") -> Table:
    table = _table(str(reader.directory), "", "")
    manifest = reader.manifest
    table.add_row("iteration", str(manifest.iteration))
    table.add_row("run", manifest.run_id)
    table.add_row("written by", _pairs(manifest.versions))
    table.add_row("layout", _pairs(manifest.layout) or "none (imported)")
    table.add_row("optimizer state", "yes" if reader.has_optimizer else "no")
    table.add_row("tokenizer", "yes" if reader.tokenizer_folder else "no")
    for section, value in reader.config.items():
        text = _pairs(value) if isinstance(value, dict) else str(value)
        table.add_row(section, Text(text))  # brackets of a list are no markup
    return table


def _kinds(reader: "CheckpointReader") -> Table:
    """One row per kind of tensor and dtype."""
    totals: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    for key, tensor in reader.tensors.items():
        first = key.partition(".")[0]
        kind = first if first in KINDS else "weight"
        row = totals[kind, str(tensor.dtype).removeprefix("torch.")]
        row[0] += 1
        row[1] += tensor.size // tensor.dtype.itemsize
        row[2] += tensor.size
    table = _table("tensors", "kind", "dtype", "tensors", "elements", "bytes")
    for names, numbers in sorted(totals.items()):
        table.add_row(*names, *(f"{number:,}" for number in numbers))
    return table


def _files(reader: "CheckpointReader") -> Table:
    table = _table("files", "file", "bytes", "sha256")
    for name, record in sorted(reader.manifest.files.items()):
        table.add_row(name, f"{record.size:,}", record.sha256[:12])
    return table


def _tensors(reader: "CheckpointReader") -> Table:
    table = _table("all tensors", "key", "dtype", "shape", "shards")
    for key, tensor in reader.tensors.items():
        shape = " x ".join(map(str, tensor.shape))
        dtype = str(tensor.dtype).removeprefix("torch.")
        table.add_row(key, dtype, shape, str(len(tensor.shards)))
    return table


def _table(title: str, *headers: str) -> Table:
    table = Table(title=Text(title), title_justify="left", show_header=any(headers))
    for header in headers:
        table.add_column(header, justify="right" if header in NUMBERS else "left")
    return table


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


def _parser() -> CommandParser:
    parser = CommandParser(prog="tools/inspect_checkpoint.py", description=__doc__)
    parser.add_argument(
        "checkpoint",
        type=Path,
        metavar="DIR",
        help="a checkpoint, or a run's folder, of which the newest is taken",
    )
    parser.add_argument("--verify", action="store_true", help="read every byte and compare hashes")
    parser.add_argument("--tensors", action="store_true", help="list every tensor")
    return parser


if __name__ == "__main__":
    sys.exit(main())
