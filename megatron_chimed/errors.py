"""What a user can do wrong or a machine can fail at, one class each, with its exit code.

A message says what is wrong, why it matters and how to mend it, with the values. `assert` is for
our own bugs only. Exit codes follow sysexits where one fits (78 EX_CONFIG, 65 EX_DATAERR, ...), so
that a job script can tell "fix the config" from "try again".
"""

import argparse
import contextlib
import errno
import hashlib
import itertools
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
"""Where torchrun tells a rank to leave the reason of its end."""
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Of a disk without room, and of a user without."""


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


class InterruptError(ChimedError):
    """Ctrl-C ended the work; what was finished is kept, and the same command goes on from there."""

    exit_code = 130


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


def check_output(flag: str, path: Path, *others: Path) -> None:
    """Finds out before the work whether its result can be written.

    Args:
        flag: Names the path in messages.
        path: A file; it may exist.
        others: Inputs, which it must not replace.

    Raises:
        ConfigError: It is one of the inputs.
        OutputError: It cannot be written.
    """
    if path.resolve() in (other.resolve() for other in others):
        raise ConfigError(f"{flag} is {path}, an input, which it would replace. Name another file.")
    if path.is_dir():
        raise OutputError(f"{flag} {path} is a folder. Name a file in it.")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise OutputError(f"{flag}: {parent} cannot be written to. Name another folder.")


def run_command(main: Callable[[], int]) -> int:
    """Runs a command's body and turns our errors into one message and their exit code.

    Under torchrun the message goes into the rank's error file too, so that torchrun's summary shows
    it; of ranks of a node with the same message, or the same traceback, one prints it.

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
        return _report(OutputError, describe_os_error(error))
    except KeyboardInterrupt:
        _tell("interrupted", "interrupted")
        return InterruptError.exit_code
    except Exception as error:
        _record_failure(f"{type(error).__name__}: {error}")
        if is_first_to_say(traceback.format_exc()):
            raise
        return ChimedError.exit_code


def describe_os_error(error: OSError) -> str:
    """What the system refused, and what to do about it."""
    if error.errno in FULL:
        return (
            f"{error}: the disk is full, or a quota is used up. Free some space or name an output "
            "elsewhere, and start the same command again."
        )
    return f"{error}. Check the disk and the permissions."


def is_first_to_say(text: str) -> bool:
    """Whether no other rank of this node has said it; always so without torchrun.

    torchrun gives each rank of an attempt a folder for its error file; beside these folders, which
    no other node or attempt has, the first rank leaves a mark.
    """
    path = os.environ.get(ERROR_FILE)
    if not path:
        return True
    digest = hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()
    mark = Path(path).absolute().parent.parent / f"said-{digest[:16]}"
    try:
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        return False
    except OSError:  # said twice is better than not at all
        return True
    return True


def _record_failure(text: str) -> None:
    """Leaves the reason where torchrun looks for it, in the form of its `ErrorHandler`.

    Without the key `py_callstack`, it shows the message alone.
    """
    if path := os.environ.get(ERROR_FILE):
        told = {"message": text, "extraInfo": {"timestamp": str(int(time.time()))}}
        # What is printed is enough where this cannot be written.
        with contextlib.suppress(OSError):
            Path(path).write_text(json.dumps({"message": told}), encoding="utf-8")


def _report(kind: type[ChimedError], message: str) -> int:
    rank = os.environ.get("RANK")
    where = f"[rank {rank}] " if rank is not None else ""
    _tell(f"{kind.__name__}: {message}", f"{where}{kind.__name__}: {message}")
    return kind.exit_code


def _tell(text: str, shown: str) -> None:
    _record_failure(text)
    if is_first_to_say(text):
        print(shown, file=sys.stderr, flush=True)
