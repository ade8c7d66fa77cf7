"""Disk space: checked before something large is written, named when it runs out.

Space that is free now may be gone when it is needed, and quotas are not visible: a check can save
hours, but guarantees nothing.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from megatron_chimed.errors import FULL, OutputError


def free_bytes(path: str | os.PathLike) -> int:
    """Bytes that this user can still write on a path's file system; the path need not exist yet."""
    path = Path(path).absolute()
    held = next(folder for folder in (path, *path.parents) if folder.exists())
    return shutil.disk_usage(held).free


def show_bytes(count: int) -> str:
    """A number of bytes in words: `182 GB`, with 10^9 bytes each."""
    for unit, size in (("GB", 10**9), ("MB", 10**6)):
        if count >= size:
            digits = f"{count / size:.3g}" if count < 1000 * size else f"{count / size:,.0f}"
            return f"{digits} {unit}"
    return f"{count / 1000:.3g} kB"


OTHERWISE = "or name another output"


def require_space(path: str | os.PathLike, needed: int, what: str, advice: str = OTHERWISE) -> None:
    """Checks that there is space for a result, before the work.

    Args:
        path: Where the result is written.
        needed: Bytes.
        what: What they are for.
        advice: Completes the sentence "Free some space there, ...".

    Raises:
        OutputError: Less space is free.
    """
    if free_bytes(path) < needed:
        raise _no_room(path, needed, what, advice)


@contextlib.contextmanager
def naming_space(
    path: str | os.PathLike, needed: int, what: str, advice: str = OTHERWISE
) -> Iterator[None]:
    """Turns a full disk inside the block into the error of `require_space`.

    Raises:
        OutputError: The disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise _no_room(path, needed, what, advice) from error


def _no_room(path: str | os.PathLike, needed: int, what: str, advice: str) -> OutputError:
    return OutputError(
        f"{path} has no room for {what}: {show_bytes(needed)} needed, "
        f"{show_bytes(free_bytes(path))} free. Free some space there, {advice}."
    )
