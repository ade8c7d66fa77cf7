"""What the commands share: their parser, common flags, and whether a result can be written."""

import argparse
import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from megatron_chimed.errors import ConfigError, OutputError, closest, existing_output, near
from megatron_chimed.renames import FLAGS

_MOST_RANKS = 1 << 16  # to plan for: more than any cluster has


class CommandParser(argparse.ArgumentParser):
    """An argument parser whose errors are ours: one message, exit code 78.

    Flags are written out in full: what an abbreviation means would change with the next flag. The
    description is shown as it is, so that its commands can be pasted.
    """

    def __init__(self, **options: Any) -> None:
        plain_text = argparse.RawDescriptionHelpFormatter
        super().__init__(**{"allow_abbrev": False, "formatter_class": plain_text, **options})
        self.register("type", int, _whole_number)
        self.register("type", float, _number)
        self._words: list[str] = []

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """As argparse does; remembers the words for `error`."""
        self._words = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Raises instead of printing the usage and exiting with 2.

        A misspelt flag is named first: it is often why another one is missing.
        """
        if unknown := self._unknown_flags(message):
            message = ". ".join(map(self._explain, unknown))
        message = message.removeprefix("argument ")
        raise ConfigError(f"{message}. See `{self.prog} --help`.")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            name = "/".join(action.option_strings) or action.metavar or action.dest
            meant = closest(str(value), map(str, action.choices))
            self.error(f"{name} is {value!r}: it must be one of {', '.join(action.choices)}{meant}")

    def _unknown_flags(self, message: str) -> list[str]:
        """Flags of the command line that neither this command nor a subcommand of it has."""
        start = "unrecognized arguments: "
        words = message.removeprefix(start).split() if message.startswith(start) else []
        if not any(a.nargs in (argparse.REMAINDER, argparse.PARSER) for a in self._actions):
            words = list(itertools.takewhile(lambda word: word != "--", self._words))
        flags = [word.partition("=")[0] for word in words if word.startswith("--")]
        return [flag for flag in flags if flag not in self._flags()]

    def _flags(self) -> set[str]:
        flags = set(self._option_string_actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                flags.update(*(command._flags() for command in action.choices.values()))
        return flags

    def _explain(self, flag: str) -> str:
        known = self._flags()
        if (new := FLAGS.get(flag)) in known:
            return f"{flag} is called {new} now"
        meant = near(flag, known)
        return f"{flag} is unknown{f' (did you mean {meant}?)' if meant else ''}"


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def add_model_flags(group: argparse._ActionsContainer) -> None:
    """Adds the flags of every command that runs a checkpoint: its layout, its precision."""
    for name in ("tensor", "pipeline"):
        group.add_argument(
            f"--parallel.{name}_parallel_size",
            type=positive,
            default=1,
            metavar="N",
            help=f"{name}-parallel ranks, whatever layout the training had (default: 1)",
        )
    group.add_argument(
        "--precision",
        choices=("fp32", "bf16", "fp16"),
        help="of weights and activations (default: that of the stored weights)",
    )


def layout_sizes(flags: argparse.Namespace) -> dict[str, int]:
    """The layout of `add_model_flags`, by the names of `ParallelConfig`."""
    names = ("tensor_parallel_size", "pipeline_parallel_size")
    return {name: getattr(flags, f"parallel.{name}") for name in names}


def positive(text: str) -> int:
    """A type of flags: a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def model_flag(key: str) -> str | None:
    """What a command with these flags calls a setting of a training run; None: it has none."""
    flags = {
        "parallel.tensor_parallel_size": "--parallel.tensor_parallel_size",
        "parallel.pipeline_parallel_size": "--parallel.pipeline_parallel_size",
        "training.precision": "--precision",
    }
    return flags.get(key)


def add_planning_flags(parser: CommandParser, what: str) -> None:
    """Adds `--dry-run` and `--world-size`.

    Args:
        parser: Of the command.
        what: What a dry run does.
    """
    parser.add_argument("--dry-run", action="store_true", help=what)
    parser.add_argument(
        "--world-size",
        type=int,
        metavar="N",
        help="ranks to plan for with --dry-run (default: as many as were started)",
    )


def check_planning_flags(flags: argparse.Namespace) -> None:
    """Checks the flags of `add_planning_flags`.

    Raises:
        ConfigError: `--world-size` without `--dry-run`, or not a number of ranks.
    """
    asked = flags.world_size
    if asked is not None and not (flags.dry_run and 1 <= asked <= _MOST_RANKS):
        raise ConfigError(
            f"--world-size is {asked}: it is a number of ranks, from 1 to {_MOST_RANKS}, to plan "
            "for with --dry-run. Real ranks are started by torchrun --nproc-per-node."
        )


def add_overwrite_flag(group: argparse._ActionsContainer) -> None:
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
