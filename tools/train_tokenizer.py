r"""Trains a tokenizer on text: LLaMA-like with sentencepiece, or Qwen-like byte-level BPE.

Examples:
    python tools/train_tokenizer.py --input corpus.jsonl --vocab-size 8000 --output tokenizer
    python tools/train_tokenizer.py --input a.txt b.txt --vocab-size 2000 --output tokenizer \
        --added-token "<human>" --added-token "<bot>"
    python tools/train_tokenizer.py --kind byte_bpe --input corpus.jsonl --vocab-size 8000 \
        --output tokenizer --added-token "<think>" --added-token "</think>"

`sentencepiece` gives BPE with byte fallback, single digits and no normalization, and added tokens
are recognised in text. `byte_bpe` gives byte-level BPE with single digits and NFC, and the tokens
<|endoftext|>, <|im_start|>, <|im_end|> and <|pad|>, which like added tokens only templates write.

The output is a Hugging Face folder. Before the command ends, it verifies that transformers gives
the same ids.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_chimed.command_line import CommandParser, add_overwrite_flag, check_output_folder
from megatron_chimed.data.preprocessing.corpus_texts import CorpusConfig, corpus_texts
from megatron_chimed.data.preprocessing.flags import add_bad_row_flags, add_reading_flags
from megatron_chimed.errors import ConfigError, run_command
from megatron_chimed.tokenizer import train_byte_bpe, train_tokenizer
from megatron_chimed.tokenizer.bpe_training import CHARACTER_COVERAGE
from megatron_chimed.tokenizer.saving import is_tokenizer_folder

BYTE_BPE = "byte_bpe"
KINDS = ("sentencepiece", BYTE_BPE)
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
    common: dict[str, Any] = {
        "vocab_size": arguments.vocab_size,
        "added_tokens": arguments.added_token,
        "overwrite": arguments.overwrite,
    }
    texts = corpus_texts(config, lambda message: print(message, file=sys.stderr))
    if arguments.kind == BYTE_BPE:
        tokenizer = train_byte_bpe(texts, arguments.output, **common)
    else:
        coverage = arguments.character_coverage or CHARACTER_COVERAGE
        tokenizer = train_tokenizer(texts, arguments.output, character_coverage=coverage, **common)
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
    parser.add_argument(
        "--kind",
        choices=KINDS,
        default=KINDS[0],
        help=f"the kind of tokenizer (default: {KINDS[0]})",
    )
    add_overwrite_flag(parser)
    parser.add_argument(
        "--vocab-size",
        type=int,
        required=True,
        metavar="N",
        help="size of the vocabulary without added tokens: 256 bytes, with sentencepiece 3 control "
        "pieces, the rest learned",
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
        metavar="R",
        help="sentencepiece only: share of characters with their own piece, 0 to 1 (default: "
        f"{CHARACTER_COVERAGE})",
    )
    add_reading_flags(parser)
    add_bad_row_flags(parser)
    arguments = parser.parse_args(argv)
    if arguments.kind == BYTE_BPE and arguments.character_coverage is not None:
        raise ConfigError(
            f"--character-coverage is for --kind {KINDS[0]}: {BYTE_BPE} spells any character in "
            "bytes. Remove it."
        )
    return arguments


if __name__ == "__main__":
    sys.exit(run_command(main))
