r"""Trains a LLaMA-like tokenizer on text: BPE, byte fallback, single digits, no normalization.

Examples:
    python tools/train_tokenizer.py --input corpus.jsonl --vocab-size 8000 --output tokenizer
    python tools/train_tokenizer.py --input a.txt b.txt --vocab-size 2000 --output tokenizer \
        --added-token "<human>" --added-token "<bot>"

The output is a Hugging Face folder. Before the command ends, it verifies that transformers and
sentencepiece give the same ids.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_chimed.command_line import CommandParser, add_overwrite_flag, check_output_folder
from megatron_chimed.data.preprocessing.corpus_texts import CorpusConfig, corpus_texts
from megatron_chimed.data.preprocessing.flags import add_bad_row_flags, add_reading_flags
from megatron_chimed.errors import run_command
from megatron_chimed.tokenizer import train_tokenizer
from megatron_chimed.tokenizer.bpe_training import CHARACTER_COVERAGE
from megatron_chimed.tokenizer.saving import is_tokenizer_folder

READING = ("format", "text_key", "encoding", "strict_keys", "max_bad_rate", "max_row_bytes")


def main(argv: Sequence[str] | None = None) -> int:
    """Trains, saves and checks a tokenizer."""
    arguments = parse_arguments(argv)
    config = CorpusConfig(
        inputs=tuple(arguments.input),
        output_prefix=str(arguments.output),
        columns=tuple(arguments.columns),
        ignore_keys=tuple(arguments.ignore_keys),
        **{name: getattr(arguments, name) for name in READING},
    )
    check_output_folder(
        "--output", arguments.output, overwrite=arguments.overwrite, is_ours=is_tokenizer_folder
    )
    tokenizer = train_tokenizer(
        corpus_texts(config, lambda message: print(message, file=sys.stderr)),
        arguments.output,
        vocab_size=arguments.vocab_size,
        added_tokens=arguments.added_token,
        character_coverage=arguments.character_coverage,
        overwrite=arguments.overwrite,
    )
    print(f"wrote {arguments.output}: {tokenizer.vocab_size} ids, transformers agrees on them")
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line.

    Raises:
        ConfigError: It is wrong.
    """
    parser = CommandParser(prog="tools/train_tokenizer.py", description=__doc__)
    parser.add_argument(
        "--input",
        nargs="+",
        required=True,
        metavar="FILE",
        help="files, folders or patterns in any format of docs/formats.md",
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder to make")
    add_overwrite_flag(parser)
    parser.add_argument(
        "--vocab-size",
        type=int,
        required=True,
        metavar="N",
        help="size of the sentencepiece model: 3 control, 256 bytes, the rest learned; without the "
        "added tokens",
    )
    parser.add_argument(
        "--added-token",
        action="append",
        default=[],
        metavar="TOKEN",
        help="a string that gets its own id; may be given several times",
    )
    parser.add_argument(
        "--character-coverage",
        type=float,
        default=CHARACTER_COVERAGE,
        metavar="R",
        help=f"share of characters with their own piece, 0 to 1 (default: {CHARACTER_COVERAGE})",
    )
    add_reading_flags(parser)
    add_bad_row_flags(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(run_command(main))
