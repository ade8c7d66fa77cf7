"""The errors that users and machines cause: one class each, with its exit code.

A message says what is wrong, why it matters and how to fix it, with the values. `assert` is for
our own bugs only. Exit codes follow sysexits where one fits (78 EX_CONFIG, 65 EX_DATAERR, ...), so
that a job script can distinguish "fix the configuration" from "try again".
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
"""Names the file in which torchrun expects a rank's failure."""
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Disk full, and quota exceeded."""
_MOST_FILES = 1 << 20
_OUT_OF_MEMORY = (
    "this machine has too little memory for it. Plan with --dry-run, lower the batch, the sequence "
    "length or the model, set recompute, or spread it over more ranks"
)

_GPU_ADVICE = (
    "a GPU has too little memory for it. Lower the batch or --max-batch, the sequence length or "
    "--max-new-tokens, or spread the model over more GPUs"
)
_GPU_OUT_OF_MEMORY = (
    "CUDA out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
    "Cuda failure 2 'out of memory'",  # NCCL's text
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
    """A peer was lost, hung or was preempted: the same command can be tried again."""

    exit_code = 75


class InterruptError(ChimedError):
    """Ctrl-C stopped the work; finished work is kept, and the same command resumes from it."""

    exit_code = 130


class UnsafeInputError(ChimedError):
    """An input would run code or escape its folder; it was refused."""

    exit_code = 77


class NumericError(ChimedError):
    """Loss, gradient or weights are not finite."""

    exit_code = 17


class KernelError(ChimedError):
    """An op was called with arguments that it does not support."""

    exit_code = 70


class GpuMemoryError(ChimedError):
    """A GPU has less memory than the configuration needs."""

    exit_code = 71


@contextlib.contextmanager
def reworded(names: Mapping[str, str | None]) -> Iterator[None]:
    """Renames settings in the messages of errors raised inside, for commands with other flags.

    Args:
        names: New names by key, such as `optim.lr`, which a message may contain as a flag. None:
            the command has no such setting, and the clause that names it is removed.

    Raises:
        ChimedError: The one raised inside, reworded.
    """
    try:
        yield
    except ChimedError as error:
        message = reword(str(error), names)
        if message == str(error):
            raise
        raise type(error)(message) from error


def reword(text: str, names: Mapping[str, str | None]) -> str:
    """The text with settings renamed as by `reworded`; a new name without dashes keeps the old."""
    for key in filter(text.__contains__, names):
        name, old = names[key], rf"(--)?(?<![\w.]){re.escape(key)}(?![\w.]\w)"
        if name is None:
            clause = rf"[;.] (?:[^;.]|\.(?! ))*?{old}(?:[^;.]|\.(?=\S))*(?=[;.])"
            text = re.sub(clause, "", text)
        else:
            text = re.sub(old, name if name.startswith("--") else rf"\1{name}", text)
    return text


def short_hashes(text: str) -> str:
    """The text with its SHA-256 digests cut to 12 digits, as many as people compare."""
    return _HASH.sub(r"\1", text)


def existing_output(flag: str, path: Path) -> OutputError:
    """The error for an output that exists already."""
    return OutputError(
        f"{flag}: {path} exists already. Name another {flag}, or give --overwrite to replace it "
        "once the new output is complete."
    )


def run_command(main: Callable[[], int]) -> int:
    """Runs a command's body and turns our errors into one message and an exit code.

    Under torchrun the message is also written to the rank's error file, so that torchrun's summary
    shows it. Of several ranks on a node with the same message or traceback, one prints it.

    Args:
        main: The command; returns its exit code.

    Returns:
        The exit code: `main`'s own, the error's, 73 for an operating system error, 78 for too
        little memory or too low a limit on open files, 71 for too little GPU memory, 130 after
        Ctrl-C. Anything else is our bug and keeps its traceback.
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
        _print_once("interrupted", "interrupted")
        return InterruptError.exit_code
    except Exception as error:
        if (explained := _out_of_memory(error)) is not None:
            return _report(type(explained), str(explained))
        _record_failure(f"{type(error).__name__}: {error}")
        if is_first_to_report(traceback.format_exc()):
            raise
        return ChimedError.exit_code


def describe_os_error(error: OSError) -> str:
    """What the operating system refused, and how to fix it."""
    if error.errno in FULL:
        return (
            f"{error}: the disk is full, or a quota is used up. Free some space or name an output "
            "elsewhere, and start the same command again."
        )
    return f"{error}. Check the disk and the permissions."


def warn(text: str) -> None:
    """Prints a warning on stderr; of several ranks on a node with the same one, one prints it."""
    if is_first_to_report(text):
        print(f"warning: {text}", file=sys.stderr, flush=True)


def is_first_to_report(text: str) -> bool:
    """Whether no other rank of this node has printed the text; always true without torchrun.

    torchrun gives each rank of an attempt a folder for its error file. The first rank creates a
    marker file beside these folders, which no other node or attempt shares.
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
    except OSError:  # printed twice is better than not at all
        return True
    return True


def _record_failure(text: str) -> None:
    """Writes the failure where torchrun looks for it, in the format of its `ErrorHandler`.

    Without the key `py_callstack`, torchrun shows the message only.
    """
    if path := os.environ.get(ERROR_FILE):
        failure = {"message": text, "extraInfo": {"timestamp": str(int(time.time()))}}
        # Printing it is enough if the file cannot be written.
        with contextlib.suppress(OSError):
            Path(path).write_text(json.dumps({"message": failure}), encoding="utf-8")


def _raise_file_limit() -> None:
    """Raises the limit on open files to what the system allows: each mapped file takes one."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # not on Windows, or not allowed
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
        if soft != resource.RLIM_INFINITY and soft < most:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _too_many_files(error: OSError) -> str:
    """The message for too many open files."""
    limit = "the machine's limit"
    with contextlib.suppress(ImportError):
        import resource

        limit = f"{resource.getrlimit(resource.RLIMIT_NOFILE)[0]}, the limit of this process"
    return (
        f"too many open files: {error.filename or 'one more'} cannot be opened beyond {limit}. "
        "Each token file of a blend takes one, and a prefix has 2 to 4. Raise the limit before the "
        "command (`ulimit -n 65536`, or ask the administrator), or merge prefixes with "
        "tools/merge_datasets.py."
    )


def is_gpu_out_of_memory(error: BaseException) -> bool:
    """Whether torch, cuBLAS or NCCL could not allocate on a GPU; known by name: torch is heavy."""
    text = str(error)
    return type(error).__name__ == "OutOfMemoryError" or any(s in text for s in _GPU_OUT_OF_MEMORY)


def _out_of_memory(error: Exception) -> ChimedError | None:
    """Our error for one of Python or torch that could not allocate, on the GPU or elsewhere."""
    said = str(error).partition("\n")[0] or type(error).__name__
    if is_gpu_out_of_memory(error):
        return GpuMemoryError(f"{_GPU_ADVICE} ({said.partition('. ')[0]})")
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return ConfigError(f"{_OUT_OF_MEMORY} ({said})")
    return None


def _report(kind: type[ChimedError], message: str) -> int:
    rank = os.environ.get("RANK")
    where = f"[rank {rank}] " if rank is not None else ""
    text = f"{kind.__name__}: {short_hashes(message)}"
    _print_once(text, where + text)
    return kind.exit_code


def _print_once(text: str, shown: str) -> None:
    _record_failure(text)
    if is_first_to_report(text):
        print(shown, file=sys.stderr, flush=True)


def near(word: str, known: Iterable[str]) -> str | None:
    """The known word that a mistyped one is closest to, if one is close."""
    return next(iter(difflib.get_close_matches(word, known, 1)), None)


def closest(word: str, known: Iterable[str]) -> str:
    """What a mistyped word may have meant, else what is known, in parentheses after a space."""
    known = list(known)
    meant = near(word, known)
    return f" (did you mean {meant}?)" if meant else f" (known: {', '.join(known)})"
