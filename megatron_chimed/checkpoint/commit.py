"""How a checkpoint folder is committed, and how it is removed.

A save builds `.tmp-iter_0000100-<run id>`: every rank writes and syncs its files, rank 0 the rest
and the manifest last; then the folder is synced, renamed to `iter_0000100`, and its parent synced.
A kill at any point leaves either no `iter_0000100` or a complete one. Needs a file system that all
ranks share: rank 0 checks every file before it writes the manifest.
"""

import contextlib
import logging
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_chimed import files
from megatron_chimed.checkpoint.manifest import MANIFEST_NAME
from megatron_chimed.errors import CheckpointError, OutputError, ParallelError

if TYPE_CHECKING:  # the reader starts without megatron-core, which the engine imports
    from megatron_chimed.engine.agreement import Agreement

logger = logging.getLogger(__name__)

LATEST_NAME = "latest"
BEST_NAME = "best"
_COMMITTED = re.compile(r"iter_(\d{7,})")
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def iteration_name(iteration: int) -> str:
    """Name of the folder of a committed checkpoint."""
    return f"iter_{iteration:07d}"


def committed(root: str | os.PathLike) -> list[Path]:
    """Folders in `root` that are named like a checkpoint, newest first; content not read."""
    found = [
        (int(match[1]), path)
        for path in (Path(root).iterdir() if Path(root).is_dir() else ())
        if (match := _COMMITTED.fullmatch(path.name)) and path.is_dir()
    ]
    return [path for _, path in sorted(found, reverse=True)]


@contextlib.contextmanager
def staged(
    root: str | os.PathLike, iteration: int, *, run_id: str, agreement: "Agreement"
) -> Iterator[Path]:
    """Yields the temporary folder of a new checkpoint; renames it when the block succeeds.

    The block must write a manifest (`write_contents`). An error in it must be the same on all ranks
    (`Agreement`); the folder is then removed before any rank continues. After a lost peer the next
    `sweep` removes it.

    Raises:
        OutputError: The iteration exists, or the disk refuses; the same on all ranks.
    """
    root = Path(root)
    final = root / iteration_name(iteration)
    temporary = root / f"{files.TEMPORARY_PREFIX}{final.name}-{run_id}"
    agreement.on_rank_0(lambda: _prepare(root, final, temporary, run_id))
    try:
        yield temporary
        agreement.on_rank_0(lambda: _rename(temporary, final))
    except ParallelError:
        raise
    except Exception:
        agreement.on_rank_0(lambda: files.remove(temporary))
        raise
    agreement.on_rank_0(lambda: _write_hint(root / LATEST_NAME, final.name))


def sweep(root: str | os.PathLike, run_id: str | None = None) -> list[Path]:
    """Removes what interrupted saves left behind; returns the removed paths.

    Args:
        root: The folder of checkpoints.
        run_id: Only this run's leftovers; None for all, if the caller holds the lock of the run.
    """
    if not Path(root).is_dir():
        return []
    pattern = f"{files.TEMPORARY_PREFIX}iter_*-{run_id or '*'}"
    left = sorted(Path(root).glob(pattern))
    for path in left:
        files.remove(path)
        logger.warning("removed %s, left by an interrupted save", path)
    return left


def set_aside(root: str | os.PathLike, newer_than: int) -> list[Path]:
    """Renames checkpoints of later iterations to `damaged-iter_N`; returns the new names.

    Otherwise a run that falls back past a damaged checkpoint could not save the same iteration.
    """
    renamed = []
    for path in committed(root):
        if int(path.name.removeprefix("iter_")) > newer_than:
            count = len(list(path.parent.glob(f"damaged-{path.name}*")))
            aside = path.with_name(f"damaged-{path.name}" + (f"-{count}" if count else ""))
            os.rename(path, aside)
            renamed.append(aside)
            logger.warning("renamed the damaged checkpoint %s to %s", path, aside.name)
    if renamed:
        files.fsync_directory(root)
    return renamed


def prune(
    root: str | os.PathLike, keep: int, run_id: str, protect: Collection[int] = ()
) -> list[Path]:
    """Removes all but the newest `keep` checkpoints; call it once the newest has been verified.

    Each is renamed before it is emptied, so that no incomplete folder has a checkpoint's name.
    Links and the iterations in `protect` are left alone.
    """
    protected = {iteration_name(iteration) for iteration in protect}
    old = [
        path
        for path in committed(root)[keep:]
        if path.name not in protected and not path.is_symlink()
    ]
    for path in old:
        doomed = path.with_name(f"{files.TEMPORARY_PREFIX}{path.name}-{run_id}")
        files.remove(doomed)
        os.rename(path, doomed)
        files.fsync_directory(root)
        files.remove(doomed)
    return old


def write_best_hint(root: Path, iteration: int | None) -> None:
    """Writes the name of an iteration's checkpoint to `root/best`; removes the file without one."""
    path = root / BEST_NAME
    if iteration is not None and (root / iteration_name(iteration)).is_dir():
        _write_hint(path, iteration_name(iteration))
    else:
        files.remove(path)


def hinted(path: Path) -> Path | None:
    """The checkpoint that a file `latest` or `best` names; None for any other path."""
    if path.name not in (LATEST_NAME, BEST_NAME) or not path.is_file():
        return None
    name = path.read_bytes().strip().decode("utf-8", "replace")
    if not _COMMITTED.fullmatch(name):
        raise CheckpointError(f"{path} names {name[:80]!r}, which is no checkpoint beside it.")
    return path.with_name(name)


def _prepare(root: Path, final: Path, temporary: Path, run_id: str) -> None:
    if not _RUN_ID.fullmatch(run_id):
        raise OutputError(
            f"the run id {run_id!r} cannot be part of a folder's name: use letters, digits, _ . -"
        )
    if final.exists():
        raise OutputError(
            f"{final} exists, and a checkpoint is never overwritten. Resume from it, remove it, or "
            "save elsewhere."
        )
    root.mkdir(parents=True, exist_ok=True)
    sweep(root, run_id)
    temporary.mkdir()
    files.fsync_directory(root)


def _rename(temporary: Path, final: Path) -> None:
    if not (temporary / MANIFEST_NAME).is_file():
        raise CheckpointError(f"{temporary} has no manifest and cannot be committed.")
    os.rename(temporary, final)
    files.fsync_directory(final.parent)


def _write_hint(path: Path, name: str) -> None:
    # Readers do not need the hint, so failing to write it does not fail the checkpoint.
    try:
        if not path.is_file() or path.read_text(encoding="utf-8") != name + "\n":
            files.write_text(path, name + "\n")
    except OSError as error:
        logger.warning("%s is committed, but %s: %s", name, path, error)
