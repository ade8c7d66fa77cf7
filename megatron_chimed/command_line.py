"""What the commands share: their parser, common flags, and checks of inputs and outputs."""

import argparse
import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from megatron_chimed.errors import (
    CheckpointError,
    ConfigError,
    OutputError,
    existing_output,
    near,
)
from megatron_chimed.renames import FLAGS

_QUANTIZATION = ("qlora", "4bit", "8bit", "quant", "bnb", "nf4", "gptq", "awq")

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
            name = "/".join(action.option_strings) or f"the {action.dest}"
            known = [str(choice) for choice in action.choices]
            meant = near(str(value), known)
            ending = f" (did you mean {meant}?)" if meant else ""
            self.error(f"{name} is {value!r}: it must be one of {', '.join(known)}{ending}")

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
                given = [name for name in action.choices if name in self._words]
                commands = (action.choices[name] for name in given or action.choices)
                flags.update(*(command._flags() for command in commands))
        return flags

    def _explain(self, flag: str) -> str:
        known = self._flags()
        if (new := FLAGS.get(flag)) in known:
            return f"{flag} is called {new} now"
        if why := why_unsupported(flag):
            return f"{flag} is unknown: {why}"
        meant = near(flag, known)
        return f"{flag} is unknown{f' (did you mean {meant}?)' if meant else ''}"


def why_unsupported(name: str) -> str:
    """Why no setting has a name that users of other frameworks look for; empty: no reason known."""
    plain = "".join(letter for letter in name.lower() if letter.isalnum())
    if not any(word in plain for word in _QUANTIZATION):
        return ""
    return (
        "weights are fp32, bf16 or fp16, never quantized, so QLoRA and 4-bit loading are not "
        "supported. With few GPUs: LoRA on bf16 weights (--lora.rank 16), --optim.offload true, "
        "--model.recompute full, or more tensor parallelism (--parallel.tensor_parallel_size)"
    )


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


def positive(text: str) -> int:
    """A type of flags: a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


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
            f"--world-size is {asked}: it is the number of ranks that --dry-run plans for, from 1 "
            f"to {_MOST_RANKS}. Real ranks are started by torchrun --nproc-per-node."
        )


def add_overwrite_flag(group: argparse._ActionsContainer) -> None:
    """Adds `--overwrite`, which is the same in every command."""
    group.add_argument(
        "--overwrite",
        action="store_true",
        help="replace an existing output once the new one is complete (default: refuse)",
    )


def check_checkpoint(path: Path) -> None:
    """Refuses a path that does not exist before the modules that read checkpoints are imported.

    Raises:
        CheckpointError: Nothing is there.
    """
    if not path.exists():
        raise CheckpointError(f"{path} is not a folder. Give a checkpoint or a folder of them.")


def check_output(flag: str, path: Path, *others: Path, overwrite: bool = False) -> None:
    """Checks that an output file can be written, before the work that fills it.

    Args:
        flag: Names the path in messages.
        path: The file.
        others: Inputs, which it must not replace.
        overwrite: The file may exist: the user allows it, or an unfinished job of the command left
            its journal beside it.

    Raises:
        ConfigError: The output is one of the inputs.
        OutputError: It exists or cannot be written.
    """
    if path.resolve() in (other.resolve() for other in others):
        raise ConfigError(
            f"{flag} is {path}, which is an input and would be replaced. Name another file."
        )
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
    """Checks that an output folder can be written; an empty one may exist.

    Args:
        flag: Names the path in messages.
        path: The folder.
        overwrite: A folder with content may be replaced, if `is_ours`.
        is_ours: Whether the command made a folder. Others are never replaced: they may hold
            anything, the only copy of a model's weights included.

    Raises:
        OutputError: It exists, is not a folder, or cannot be written.
    """
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise OutputError(f"{flag} {path} is not a folder. Name another one.")
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
