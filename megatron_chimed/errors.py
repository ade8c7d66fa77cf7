"""What a user can do wrong or a machine can fail at, one class each, with its exit code.

A message says what is wrong, why it matters and how to mend it, with the values. `assert` is for
our own bugs only. Exit codes follow sysexits where one fits (78 EX_CONFIG, 65 EX_DATAERR, ...), so
that a job script can tell "fix the config" from "try again".
"""

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn


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
    """An argument parser whose errors are ours: one message, exit code 78."""

    def error(self, message: str) -> NoReturn:
        """Raises instead of printing the usage and exiting with 2."""
        raise ConfigError(f"{message}. See `{self.prog} --help`.")


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
