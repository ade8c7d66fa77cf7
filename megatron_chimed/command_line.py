"""What the commands share: their parser, common flags, and whether a result can be written."""

import argparse
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from megatron_chimed.errors import ConfigError, OutputError, existing_output

_MOST_RANKS = 1 << 16  # to plan for: more than any cluster has


class CommandParser(argparse.ArgumentParser):
    """An argument parser whose errors are ours: one message, exit code 78.

    Flags are written out in full: what an abbreviation means would change with the next flag.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})
        self._words: list[str] = []

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """As argparse does; remembers the words for `error`."""
        self._words = list(sys.argv[1:] if args is None else args)
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Raises instead of printing the usage and exiting with 2.

        A misspelt flag is named first: it is often why another one is missing.
        """
        if unknown := self._unknown_flags():
            message = f"unrecognized arguments: {' '.join(unknown)}"
        raise ConfigError(f"{message}. See `{self.prog} --help`.")

    def _unknown_flags(self) -> list[str]:
        """Of the words given, unless some are for another command."""
        if any(action.nargs in (argparse.REMAINDER, argparse.PARSER) for action in self._actions):
            return []
        words = itertools.takewhile(lambda word: word != "--", self._words)
        flags = [word.partition("=")[0] for word in words if word.startswith("--")]
        return [flag for flag in flags if flag not in self._option_string_actions]


def add_model_flags(group: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Adds the flags of every command that runs a checkpoint: its layout, its precision."""
    for name in ("tensor", "pipeline"):
        group.add_argument(
            f"--{name}-parallel-size",
            type=_positive,
            default=1,
            metavar="N",
            help=f"{name}-parallel ranks, whatever the training had (default: 1)",
        )
    group.add_argument(
        "--precision",
        choices=("fp32", "bf16", "fp16"),
        help="of weights and activations (default: that of the stored weights)",
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number of ranks, 1 or more")
    return int(text)


def model_flag(key: str) -> str | None:
    """What a command with these flags calls a setting of a training run, if it has it."""
    flags = {
        "parallel.tensor_parallel_size": "--tensor-parallel-size",
        "parallel.pipeline_parallel_size": "--pipeline-parallel-size",
        "training.precision": "--precision",
    }
    return flags.get(key)


def parse_planning(
    parser: CommandParser, argv: Sequence[str], what: str
) -> tuple[argparse.Namespace, list[str]]:
    """Adds `--dry-run` and `--world-size`, and reads the command's own flags.

    Args:
        parser: Of the command's own flags; others belong to its configuration.
        argv: All words.
        what: What a dry run does.

    Returns:
        The flags, and the words that are left.

    Raises:
        ConfigError: `--world-size` without `--dry-run`, or no number of ranks.
    """
    parser.add_argument("--dry-run", action="store_true", help=what)
    parser.add_argument(
        "--world-size",
        type=int,
        help="ranks to plan for with --dry-run; default: as many as were started",
    )
    flags, rest = parser.parse_known_args(argv)
    asked = flags.world_size
    if asked is not None and not (flags.dry_run and 1 <= asked <= _MOST_RANKS):
        raise ConfigError(
            f"--world-size is {asked}: it is a number of ranks, from 1 to {_MOST_RANKS}, to plan "
            "for with --dry-run. Real ranks are started by torchrun --nproc-per-node."
        )
    return flags, rest


def add_overwrite_flag(group: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Adds `--overwrite`, the same for every command that makes something."""
    group.add_argument(
        "--overwrite",
        action="store_true",
        help="replace what is there under the output's name, once the new output is complete "
        "(default: refuse)",
    )


def check_output(flag: str, path: Path, *others: Path, overwrite: bool = False) -> None:
    """Finds out before the work whether its result can be written.

    Args:
        flag: Names the path in messages.
        path: A file.
        others: Inputs, which it must not replace.
        overwrite: It may exist: the user says so, or an unfinished job of the command is beside it.

    Raises:
        ConfigError: It is one of the inputs.
        OutputError: It exists or cannot be written.
    """
    if path.resolve() in (other.resolve() for other in others):
        raise ConfigError(f"{flag} is {path}, an input, which it would replace. Name another file.")
    if path.is_dir():
        raise OutputError(f"{flag} {path} is a folder. Name a file in it.")
    if not overwrite and (path.exists() or path.is_symlink()):
        raise existing_output(flag, path)
    _check_parent(flag, path)


def check_output_folder(
    flag: str,
    path: Path,
    *,
    overwrite: bool = False,
    is_ours: Callable[[Path], bool] = lambda _: False,
) -> None:
    """The same for a folder that appears when it is complete; an empty one may be there.

    Args:
        flag: Names the path in messages.
        path: A folder.
        overwrite: It may be there with content, if it is one that the command has made.
        is_ours: Whether a folder with content is one that the command has made. Another is not
            replaced: it may be anybody's, a model's weights with the same files among them.

    Raises:
        OutputError: It exists, is no folder, or cannot be written.
    """
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise OutputError(f"{flag} {path} is no folder. Name another one.")
    content = list(path.iterdir()) if path.is_dir() else []
    if content and not overwrite:
        raise existing_output(flag, path)
    if content and not is_ours(path):
        raise OutputError(
            f"{flag} {path} was not made by this command, so --overwrite does not replace it. Name "
            "another folder, or remove it yourself."
        )
    _check_parent(flag, path)


def _check_parent(flag: str, path: Path) -> None:
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise OutputError(f"{flag}: {parent} cannot be written to. Name another folder.")
