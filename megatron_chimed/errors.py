"""What a user can do wrong or a machine can fail at, one class each, with its exit code.

A message says what is wrong, why it matters and how to mend it, with the values. `assert` is for
our own bugs only. Exit codes follow sysexits where one fits (78 EX_CONFIG, 65 EX_DATAERR, ...), so
that a job script can tell "fix the config" from "try again".
"""

import argparse
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn


class ChimedError(Exception):
    """Base of every error this project raises on purpose."""

    exit_code = 1


class ConfigError(ChimedError):
    """A setting is wrong, missing, unknown or contradicts another one."""

    exit_code = 78


class DataError(ChimedError):
    """An input file is malformed, truncated or does not fit what it is used with."""

    exit_code = 65


class OutputError(ChimedError):
    """An output cannot be written: it exists, is locked, or the disk refuses."""

    exit_code = 73


class CheckpointError(ChimedError):
    """A checkpoint is incomplete, damaged or belongs to another model."""

    exit_code = 74


class ParallelError(ChimedError):
    """A peer was lost, hung or was preempted: the same command may be tried again."""

    exit_code = 75


class UnsafeInputError(ChimedError):
    """An input asks to run code or to leave its folder; it was refused."""

    exit_code = 77


class NumericError(ChimedError):
    """Loss, gradient or weights are not finite."""

    exit_code = 17


class KernelError(ChimedError):
    """An op was called with arguments that it cannot take."""

    exit_code = 70


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
            type=int,
            default=1,
            metavar="N",
            help=f"{name}-parallel ranks, whatever the training had (default: 1)",
        )
    group.add_argument(
        "--precision",
        choices=("fp32", "bf16", "fp16"),
        help="of weights and activations (default: that of the stored weights)",
    )


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
    if flags.world_size is not None and (flags.world_size < 1 or not flags.dry_run):
        raise ConfigError(
            f"--world-size is {flags.world_size}: it is a number of ranks, 1 or more, to plan for "
            "with --dry-run. Real ranks are started by torchrun --nproc-per-node."
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


def existing_output(flag: str, path: Path) -> OutputError:
    """The error of an output that is there already."""
    return OutputError(
        f"{flag}: {path} exists, and nothing is written over unasked. Name another {flag}, or give "
        "--overwrite to replace it once the new output is complete."
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
    flag: str, path: Path, *, overwrite: bool = False, marker: str | None = None
) -> None:
    """The same for a folder that appears when it is complete; an empty one may be there.

    Args:
        flag: Names the path in messages.
        path: A folder.
        overwrite: It may be there with content, if it is one that the command has made.
        marker: A file that each such folder holds. One without it, or with folders in it, is not
            replaced: it may be anybody's.

    Raises:
        OutputError: It exists, is no folder, or cannot be written.
    """
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise OutputError(f"{flag} {path} is no folder. Name another one.")
    content = list(path.iterdir()) if path.is_dir() else []
    if content and not overwrite:
        raise existing_output(flag, path)
    if content and not (marker and (path / marker).is_file() and all(map(Path.is_file, content))):
        raise OutputError(
            f"{flag} {path} holds what this command does not make (it makes files, {marker} among "
            "them), so --overwrite does not replace it. Name another folder, or remove it yourself."
        )
    _check_parent(flag, path)


def _check_parent(flag: str, path: Path) -> None:
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise OutputError(f"{flag}: {parent} cannot be written to. Name another folder.")


def run_command(main: Callable[[], int]) -> int:
    """Runs a command's body and turns our errors into one message and their exit code.

    Args:
        main: The command; returns its exit code.

    Returns:
        The exit code: `main`'s own, the error's, 73 for an operating system error, 130 after ^C.
        Anything else is a bug of ours and keeps its traceback.
    """
    try:
        return main()
    except ChimedError as error:
        return _report(type(error), str(error))
    except FileNotFoundError as error:
        return _report(ConfigError, f"{error.filename!r} does not exist. Check the path.")
    except OSError as error:
        return _report(OutputError, f"{error}. Check the disk and the permissions.")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        return 130


def _report(kind: type[ChimedError], message: str) -> int:
    rank = os.environ.get("RANK")
    where = f"[rank {rank}] " if rank is not None else ""
    print(f"{where}{kind.__name__}: {message}", file=sys.stderr, flush=True)
    return kind.exit_code
