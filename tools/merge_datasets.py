r"""Merges token files of one kind: pretraining, conversations or rankings.

Examples:
    python tools/merge_datasets.py --inputs data/books data/web --output-prefix data/corpus
    python tools/merge_datasets.py --inputs data/part-*.idx --output-prefix data/all --overwrite

An input is a path without .bin and .idx, or the path of its .idx file. All must have been made with
the same tokenizer, stage, template and element type. Documents keep their order and their sources;
each file is verified by its hash while it is copied.
"""

import sys
import time
from collections.abc import Sequence

from megatron_chimed.command_line import CommandParser, add_overwrite_flag
from megatron_chimed.data.preprocessing.merging import MergeConfig, merge
from megatron_chimed.errors import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Merges and prints a summary."""
    config = parse_arguments(argv)
    started = time.monotonic()
    sidecar = merge(config)
    seconds = time.monotonic() - started
    print(
        f"{sidecar.documents:,} documents, {sidecar.tokens:,} tokens of {len(config.inputs)} "
        f"prefixes in {seconds:.1f} s\nwrote {config.output_prefix} ({sidecar.stage}, "
        f"{sidecar.dtype} ids)"
    )
    return 0


def parse_arguments(argv: Sequence[str] | None) -> MergeConfig:
    """Reads the command line.

    Raises:
        ConfigError: It is wrong.
    """
    parser = CommandParser(prog="tools/merge_datasets.py", description=__doc__)
    parser.add_argument(
        "--inputs", nargs="+", required=True, metavar="P", help="prefixes to merge, in order"
    )
    parser.add_argument(
        "--output-prefix", required=True, metavar="Q", help="output path without .bin and .idx"
    )
    add_overwrite_flag(parser)
    arguments = vars(parser.parse_args(argv))
    names = arguments.pop("inputs")
    inputs = tuple(_prefix_of(name) for name in names if not name.endswith(".mask.idx"))
    return MergeConfig(inputs=inputs, **arguments)


def _prefix_of(name: str) -> str:
    for suffix in (".ranked.idx", ".idx"):
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return name


if __name__ == "__main__":
    sys.exit(run_command(main))
