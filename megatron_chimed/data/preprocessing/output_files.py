"""Writes `.idx` and `.rank.json` files from spools, in memory that does not grow with the data.

Writing an index of 100 million documents takes seconds, where a list of Python integers would take
minutes and gigabytes.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from megatron_chimed.data.datasets.indexed import CHECK_ENTRIES, CODES, HEADER, MAGIC, VERSION
from megatron_chimed.data.preprocessing.documents import RankingGroups
from megatron_chimed.data.preprocessing.journal import Spool
from megatron_chimed.errors import DataError

RANK_FILE_VERSION = 1
LABEL_FILE_VERSION = 2  # with `labels`, which a reader of version 1 would overlook
BLOCK_GROUPS = 1 << 14  # held as Python lists: bounds the memory
CANDIDATES, PROMPTS, RANKS, MARGINS = GROUP_SPOOLS = ("candidates", "prompts", "ranks", "margins")


def write_index(path: Path, dtype: np.dtype, lengths: Path, documents: Path | None) -> str:
    """Writes an index.

    Args:
        path: The index to write; not synced.
        dtype: Element type of its token file.
        lengths: A file of int32, the tokens of each sequence.
        documents: A file of int32, the sequences of each document; None: one sequence each.

    Returns:
        Hex SHA-256 of the index.
    """
    sequences = lengths.stat().st_size // 4
    counts = sequences if documents is None else documents.stat().st_size // 4
    header = np.zeros(1, HEADER)
    header["magic"] = np.void(MAGIC)
    header["version"] = VERSION
    header["dtype_code"] = CODES[dtype]
    header["sequences"] = sequences
    header["document_entries"] = counts + 1
    digest = hashlib.sha256()
    with open(path, "wb") as stream:
        for block in _index_blocks(header, dtype, lengths, documents):
            stream.write(block.data)
            digest.update(block.data)
    return digest.hexdigest()


def _index_blocks(
    header: np.ndarray, dtype: np.dtype, lengths: Path, documents: Path | None
) -> Iterator[np.ndarray]:
    """Header, lengths, pointers and document indices, in file order."""
    yield header.view(np.uint8)
    yield from read_blocks(lengths, np.int32)
    position = 0
    for block in read_blocks(lengths, np.int32):
        ends = np.cumsum(block, dtype=np.int64) * dtype.itemsize + position
        starts = np.empty_like(ends)
        starts[0], starts[1:] = position, ends[:-1]
        yield starts
        position = int(ends[-1])
    yield np.zeros(1, np.int64)
    last = 0
    for block in read_blocks(lengths if documents is None else documents, np.int32):
        if documents is None:
            yield np.arange(last + 1, last + 1 + len(block), dtype=np.int64)
            last += len(block)
        else:
            ends = np.cumsum(block, dtype=np.int64) + last
            yield ends
            last = int(ends[-1])


def read_blocks(
    path: Path, dtype: np.typing.DTypeLike, entries: int = CHECK_ENTRIES
) -> Iterator[np.ndarray]:
    """The elements of a file, at most `entries` at a time."""
    with open(path, "rb") as stream:
        while len(block := np.fromfile(stream, dtype, entries)):
            yield block


def append_groups(groups: RankingGroups, spools: Mapping[str, Spool]) -> None:
    """Appends groups to the spools named in `GROUP_SPOOLS`."""
    assert groups.candidates.sum() == len(groups.ranks) == len(groups.margins), "groups"
    assert len(groups.prompt_lengths) == len(groups.candidates), "groups"
    spools[CANDIDATES].append(np.ascontiguousarray(groups.candidates, np.int32).data)
    spools[PROMPTS].append(np.ascontiguousarray(groups.prompt_lengths, np.int32).data)
    spools[RANKS].append(np.ascontiguousarray(groups.ranks, np.int32).data)
    spools[MARGINS].append(np.ascontiguousarray(groups.margins, np.float64).data)


def append_rank_file(path: Path, candidates: np.ndarray, spools: Mapping[str, Spool]) -> None:
    """Appends the groups of an existing `.rank.json`.

    Args:
        path: The file; read as a whole.
        candidates: int32 `[documents]`, sequences of each document, from the index.
        spools: As for `append_groups`.

    Raises:
        DataError: The file does not match the index.
    """
    try:
        groups = _parse_rank_file(json.loads(path.read_text(encoding="utf-8")), candidates)
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} does not match its index ({error}): preprocess again.") from None
    append_groups(groups, spools)


def _parse_rank_file(value: dict[str, Any], candidates: np.ndarray) -> RankingGroups:
    ranks = value["ranks"]
    margins = [None] * len(ranks) if value["margins"] is None else value["margins"]
    filled = [m or [math.nan] * len(r) for m, r in zip(margins, ranks, strict=True)]
    sizes = candidates.tolist()
    known = RANK_FILE_VERSION, LABEL_FILE_VERSION
    if value["format_version"] not in known or len(value["prompt_lengths"]) != len(sizes):
        raise ValueError("format_version or the number of groups differs")
    if any([len(entry) for entry in lists] != sizes for lists in (ranks, filled)):
        raise ValueError("the number of candidates differs")
    return RankingGroups(
        candidates=candidates,
        prompt_lengths=np.array(value["prompt_lengths"], np.int32),
        ranks=np.array([*itertools.chain.from_iterable(ranks)], np.int32),
        margins=np.array([*itertools.chain.from_iterable(filled)], np.float64),
    )


def write_rank_file(path: Path, folder: Path) -> None:
    """Writes `.rank.json` from the spools in `folder`, a block of groups at a time; not synced.

    `margins` is null if no group has any, else a list with null for each group without margins.
    Groups of one are judged answers: `labels`, which is there if a group is one, says for each
    whether it is good, and is null for other groups.
    """
    sizes = read_blocks(folder / CANDIDATES, np.int32)
    has_labels = any((block == 1).any() for block in sizes)
    version = LABEL_FILE_VERSION if has_labels else RANK_FILE_VERSION
    with open(path, "w", encoding="utf-8") as stream:
        stream.write(f'{{"format_version": {version}, "ranks": ')
        _write_list(stream, _grouped(folder, RANKS, np.int32))
        stream.write(', "margins": ')
        if any(not np.isnan(block).all() for block in read_blocks(folder / MARGINS, np.float64)):
            _write_list(stream, _margins(folder))
        else:
            stream.write("null")
        if has_labels:
            stream.write(', "labels": ')
            groups = _grouped(folder, RANKS, np.int32)
            _write_list(stream, (group == [0] if len(group) == 1 else None for group in groups))
        stream.write(', "prompt_lengths": ')
        _write_list(stream, _ungrouped(folder, PROMPTS))
        stream.write("}\n")


def _grouped(folder: Path, name: str, dtype: type) -> Iterator[list]:
    """The entries of each group, one list per group."""
    with open(folder / name, "rb") as stream:
        for candidates in read_blocks(folder / CANDIDATES, np.int32, BLOCK_GROUPS):
            values = iter(np.fromfile(stream, dtype, candidates.sum()).tolist())
            for size in candidates.tolist():
                yield list(itertools.islice(values, size))


def _ungrouped(folder: Path, name: str) -> Iterator[int]:
    for block in read_blocks(folder / name, np.int32, BLOCK_GROUPS):
        yield from block.tolist()


def _margins(folder: Path) -> Iterator[list[float] | None]:
    for group in _grouped(folder, MARGINS, np.float64):
        yield None if all(map(math.isnan, group)) else group


def _write_list(stream: TextIO, items: Iterator[object]) -> None:
    separator = "["
    while part := list(itertools.islice(items, BLOCK_GROUPS)):
        stream.write(separator + json.dumps(part, allow_nan=False)[1:-1])
        separator = ", "
    stream.write("[]" if separator == "[" else "]")
