"""Verifies the data of a run before its first step; all ranks that see the same files share them.

Ranks whose files have equal paths, sizes, times and inodes see the same files, on one host or on a
shared file system. The ranks meet every few seconds, so that none waits longer than the agreement's
timeout and damage that one finds ends all.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from megatron_chimed import files
from megatron_chimed.data.datasets.config import Datasets
from megatron_chimed.data.datasets.file_hashes import (
    DataFile,
    HashUnit,
    data_files,
    hash_units,
    joint_digest,
    share_units,
    verify_unit,
)
from megatron_chimed.engine.agreement import Agreement

CACHE_NAME = "verified_data.json"
CACHE_VERSION = 1
MEETING_SECONDS = 5.0
ANNOUNCED_BYTES = 4 << 30
"""Less is hashed without a word."""
UNSETTLED_SECONDS = 2.0
"""Times of files are this coarse on some file systems: a file may change again unseen."""


@dataclasses.dataclass(frozen=True)
class Verified:
    """What `verify_data` found."""

    datasets: Datasets
    """The data with the hashes of their files, and a note for the log."""
    known: Mapping[str, str]
    """Digest by `DataFile.key`, for `remember`."""


def verify_data(
    datasets: Datasets,
    mode: Literal["once", "always", "size"],
    agreement: Agreement,
    *,
    folder: Path,
    on_meeting: Callable[[], None] = lambda: None,
) -> Verified:
    """Compares every file with its sidecar; every rank calls it.

    Args:
        datasets: The opened data.
        mode: `data.verify`.
        agreement: All ranks.
        folder: The run's folder, in which an earlier start may have written `CACHE_NAME`.
        on_meeting: Called on rank 0 every few seconds, to show that the run is alive.

    Raises:
        ConfigError: Ranks read different data.
        DataError: A file is not what its sidecar states, on any rank.
    """
    named = {
        f"{name}{file.suffix}": file
        for name, prefix in datasets.prefixes
        for file in data_files(prefix)
    }
    found = [*{file.key: file for file in named.values()}.values()]
    known: dict[str, str] = {}
    if mode != "size":
        known = agreement.on_rank_0(lambda: _read_cache(folder)) if mode == "once" else {}
        known = {file.key: known[file.key] for file in found if file.key in known}
        pending = [file for file in found if file.key not in known]
        known |= _hash_files(pending, agreement, on_meeting)
    hashes = {
        name: digest
        for name, file in named.items()
        if (digest := file.sha256 or known.get(file.key)) is not None
    }
    agreement.require_same(hashes)
    notes = (*datasets.notes, *_notes(datasets, found, mode))
    datasets = dataclasses.replace(datasets, hashes=hashes, notes=notes)
    return Verified(datasets, _settled(found, known))


def remember(folder: Path, known: Mapping[str, str]) -> None:
    """Writes what the next start need not hash again."""
    if known:
        content = {"version": CACHE_VERSION, "known": dict(known)}
        files.write_json(folder / CACHE_NAME, content)


def _read_cache(folder: Path) -> dict[str, str]:
    """Digests that an earlier start found; a damaged file costs time, never correctness."""
    try:
        content = json.loads(files.read_small(folder / CACHE_NAME))
        known = content["known"] if content["version"] == CACHE_VERSION else {}
        return {str(key): str(digest) for key, digest in known.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}


def _settled(found: Sequence[DataFile], known: Mapping[str, str]) -> dict[str, str]:
    latest = time.time() - UNSETTLED_SECONDS
    keys = {file.key for file in found if file.modified < latest}
    return {key: digest for key, digest in known.items() if key in keys}


def _hash_files(
    pending: Sequence[DataFile], agreement: Agreement, on_meeting: Callable[[], None]
) -> dict[str, str]:
    """Hashes files, shared among the ranks that see the same ones.

    Returns:
        The digest of each file by key: the stated one, or one of its blocks' digests.
    """
    keys = [file.key for file in pending]
    views = agreement.on_all_ranks(lambda: hashlib.sha256("".join(keys).encode()).hexdigest())
    peers = [rank for rank, view in enumerate(views) if view == views[agreement.rank]]
    units: list[HashUnit] = []
    agreement.on_all_ranks(lambda: units.extend(u for file in pending for u in hash_units(file)))
    share = share_units(units, len(peers))[peers.index(agreement.rank)]
    digests: dict[int, str] = {}
    size = sum(units[index].size for index in share)
    _work_together(_verify_share(units, share, digests), size, agreement, on_meeting)
    new = agreement.on_all_ranks(
        lambda: {str(i): found for i, found in digests.items() if units[i].sha256 is None}
    )
    for rank in peers:
        digests |= {int(index): digest for index, digest in new[rank].items()}
    joined: dict[str, list[str]] = {}
    for index, unit in enumerate(units):
        if unit.file.sha256 is None:
            joined.setdefault(unit.file.key, []).append(digests[index])
    stated = {file.key: file.sha256 for file in pending if file.sha256 is not None}
    return stated | {key: joint_digest(blocks) for key, blocks in joined.items()}


def _verify_share(
    units: Sequence[HashUnit], share: Sequence[int], digests: dict[int, str]
) -> Iterator[int]:
    """Hashes this rank's units into `digests`; yields the bytes of each read."""
    for index in share:
        for step in verify_unit(units[index]):
            if isinstance(step, str):
                digests[index] = step
            else:
                yield step


def _work_together(
    work: Iterator[int], size: int, agreement: Agreement, on_meeting: Callable[[], None]
) -> None:
    """Runs each rank's work of `size` bytes to its end, meeting the others; rank 0 reports."""
    started = time.monotonic()

    def advance() -> list[Any]:
        until, done = time.monotonic() + MEETING_SECONDS, 0
        for count in work:
            done += count
            if time.monotonic() >= until:
                return [done, False]
        return [done, True]

    done, finished = 0, False
    total = sum(agreement.on_all_ranks(lambda: size))
    announced = agreement.rank == 0 and total >= ANNOUNCED_BYTES
    if announced:
        print(
            f"verifying {_gigabytes(total)} of data against their hashes, shared by "
            f"{agreement.size} ranks; data.verify says when this is repeated",
            flush=True,
        )
    while not finished:
        answers = agreement.on_all_ranks(advance)
        done += sum(count for count, _ in answers)
        finished = all(ended for _, ended in answers)
        if agreement.rank == 0:
            on_meeting()
        if announced:
            seconds = time.monotonic() - started
            print(
                f"verified {_gigabytes(done)} of {_gigabytes(total)}, "
                f"{_gigabytes(done / seconds)}/s",
                flush=True,
            )


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:,.1f} GB"


def _notes(datasets: Datasets, found: Sequence[DataFile], mode: str) -> Iterator[str]:
    """One line about files whose bytes were not compared with a stated hash, if there are any."""
    if mode == "size":
        yield "data.verify is size: only the sizes of the data files were checked"
        return
    names = list(
        dict.fromkeys(
            prefix.name
            for _, prefix in datasets.prefixes
            if any(file.sha256 is None for file in data_files(prefix))
        )
    )
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield (
            f"{names[0]}{more}: bytes not verified, since no hash of some files is stored beside "
            "them; sizes and index were checked, and a resumed run requires the same bytes. "
            "Preprocess with tools/preprocess_data.py to store hashes"
        )
