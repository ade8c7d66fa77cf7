"""Room on a disk: asked for before something large is written, named when it runs out.

What is free now may be gone when it is needed, and quotas are not seen: a check saves hours, it
promises nothing.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from megatron_chimed.errors import FULL, OutputError


def free_bytes(path: str | os.PathLike) -> int:
    """What this user may still write on the file system of a path, which need not exist yet."""
    path = Path(path).absolute()
    held = next(folder for folder in (path, *path.parents) if folder.exists())
    return shutil.disk_usage(held).free


def show_bytes(count: int) -> str:
    """A number of bytes for a person: `182 GB`, of 10^9 bytes each."""
    for unit, size in (("GB", 10**9), ("MB", 10**6)):
        if count >= size:
            digits = f"{count / size:.3g}" if count < 1000 * size else f"{count / size:,.0f}"
            return f"{digits} {unit}"
    return f"{count / 1000:.3g} kB"


OTHERWISE = "or name another output"


def require_space(path: str | os.PathLike, needed: int, what: str, advice: str = OTHERWISE) -> None:
    """Finds out before the work whether its result has room.

    Args:
        path: Where it goes.
        needed: Bytes.
        what: What they are for.
        advice: Ends the sentence "Free some space there, ...".

    Raises:
        OutputError: There is less room.
    """
    if free_bytes(path) < needed:
        raise _no_room(path, needed, what, advice)


@contextlib.contextmanager
def naming_space(
    path: str | os.PathLike, needed: int, what: str, advice: str = OTHERWISE
) -> Iterator[None]:
    """Says of a disk that fills up in the block what `require_space` would have said.

    Raises:
        OutputError: It did.
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
