"""What a user can do wrong or a machine can fail at, one class each, with its exit code.

A message says what is wrong, why it matters and how to mend it, with the values. `assert` is for
our own bugs only. Exit codes follow sysexits where one fits (78 EX_CONFIG, 65 EX_DATAERR, ...), so
that a job script can tell "fix the config" from "try again".
"""

import contextlib
import difflib
import errno
import hashlib
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
"""Where torchrun tells a rank to leave the reason of its end."""
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Of a disk without room, and of a user without."""
_MOST_FILES = 1 << 20
_OUT_OF_MEMORY = (
    "this machine has too little memory for it. Plan with --dry-run, lower the batch, the sequence "
    "length or the model, set recompute, or spread it over more ranks"
)

_HASH = re.compile(r"(?<![0-9a-f])([0-9a-f]{12})[0-9a-f]{52}(?![0-9a-f])")


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


@contextlib.contextmanager
def reworded(names: Mapping[str, str | None]) -> Iterator[None]:
    """Within it, messages of our errors call settings what the command at hand calls them.

    Args:
        names: By key, such as `optim.lr`, which a message may give as a flag; None: the command has
            nothing of the kind, and the clause that names it is left out.

    Raises:
        ChimedError: As within, reworded.
    """
    try:
        yield
    except ChimedError as error:
        told = reword(str(error), names)
        if told == str(error):
            raise
        raise type(error)(told) from error


def reword(text: str, names: Mapping[str, str | None]) -> str:
    """The text with settings called as in `reworded`; a name without dashes keeps the key's."""
    for key in filter(text.__contains__, names):
        name, old = names[key], rf"(--)?(?<![\w.]){re.escape(key)}(?![\w.]\w)"
        if name is None:
            clause = rf"[;.] (?:[^;.]|\.(?! ))*?{old}(?:[^;.]|\.(?=\S))*(?=[;.])"
            text = re.sub(clause, "", text)
        else:
            text = re.sub(old, name if name.startswith("--") else rf"\1{name}", text)
    return text


def short_hashes(text: str) -> str:
    """The text with its SHA-256 digests cut to 12 digits, which is what people compare."""
    return _HASH.sub(r"\1", text)


def existing_output(flag: str, path: Path) -> OutputError:
    """The error of an output that is there already."""
    return OutputError(
        f"{flag}: {path} exists, and nothing is written over unasked. Name another {flag}, or give "
        "--overwrite to replace it once the new output is complete."
    )


def run_command(main: Callable[[], int]) -> int:
    """Runs a command's body and turns our errors into one message and their exit code.

    Under torchrun the message goes into the rank's error file too, so that torchrun's summary shows
    it; of ranks of a node with the same message, or the same traceback, one prints it.

    Args:
        main: The command; returns its exit code.

    Returns:
        The exit code: `main`'s own, the error's, 73 for an operating system error, 78 for too
        little memory or too low a limit of open files, 130 after ^C. Anything else is a bug of ours
        and keeps its traceback.
    """
    _raise_file_limit()
    try:
        return main()
    except ChimedError as error:
        return _report(type(error), str(error))
    except FileNotFoundError as error:
        return _report(ConfigError, f"{error.filename!r} does not exist. Check the path.")
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            return _report(ConfigError, _too_many_files(error))
        return _report(OutputError, describe_os_error(error))
    except KeyboardInterrupt:
        _tell("interrupted", "interrupted")
        return InterruptError.exit_code
    except Exception as error:
        if _is_out_of_memory(error):
            reason = str(error).partition("\n")[0] or type(error).__name__
            return _report(ConfigError, f"{_OUT_OF_MEMORY} ({reason})")
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


def _raise_file_limit() -> None:
    """Lets the process open as many files as the system allows: each mapped file takes one."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # not on Windows, or not allowed
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
        if soft != resource.RLIM_INFINITY and soft < most:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _too_many_files(error: OSError) -> str:
    """What to do when files cannot be opened for their number."""
    limit = "the machine's limit"
    with contextlib.suppress(ImportError):
        import resource

        limit = f"{resource.getrlimit(resource.RLIMIT_NOFILE)[0]}, the limit of this process"
    return (
        f"too many open files: {error.filename or 'one more'} cannot be opened beside {limit}. "
        "Each token file of a blend takes one, and a prefix has 2 to 4. Raise it before the "
        "command (`ulimit -n 65536`, or ask who runs the machine), or make one prefix of several "
        "with tools/merge_datasets.py."
    )


def _is_out_of_memory(error: Exception) -> bool:
    """Whether Python, or torch on the CPU, could not allocate.

    A GPU's memory is another matter: what fitted for a thousand steps may fit again after a
    restart, so that stays an error to try again.
    """
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def _report(kind: type[ChimedError], message: str) -> int:
    rank = os.environ.get("RANK")
    where = f"[rank {rank}] " if rank is not None else ""
    text = f"{kind.__name__}: {short_hashes(message)}"
    _tell(text, where + text)
    return kind.exit_code


def _tell(text: str, shown: str) -> None:
    _record_failure(text)
    if is_first_to_say(text):
        print(shown, file=sys.stderr, flush=True)


def near(word: str, known: Iterable[str]) -> str | None:
    """The known word that a mistyped one is closest to, if one is close."""
    return next(iter(difflib.get_close_matches(word, known, 1)), None)


def closest(word: str, known: Iterable[str]) -> str:
    """What a mistyped word may have meant, else what is known, in parentheses after a space."""
    known = list(known)
    meant = near(word, known)
    return f" (did you mean {meant}?)" if meant else f" (known: {', '.join(known)})"
